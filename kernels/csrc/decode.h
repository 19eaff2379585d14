// Codes to weights, 16 rows at a time. Included into a namespace for each instruction set; no templates of the standard library here,
// since the linker would merge them across instruction sets.

typedef float Pair __attribute__((vector_size(8)));
typedef float Quad __attribute__((vector_size(16)));
typedef float Octet __attribute__((vector_size(32)));
typedef float Sixteen __attribute__((vector_size(64)));

template <class Vector>
static inline void load(Vector &x, const void *from) { __builtin_memcpy(&x, from, sizeof x); }  // at any address

template <class Vector>
static inline void store(void *to, const Vector &x) { __builtin_memcpy(to, &x, sizeof x); }

enum { ROWS = 16 };  // decoded together: one vector of float32

struct Chunk {
    float *values;     // ROWS rows of `stride` floats, unscaled
    int64_t stride;
};

// Codebooks by value, so that no store makes the compiler read their place again. 0 books stand for any number.
template <class Vector, int N_VECTORS, int N_BOOKS>
struct Books {
    static constexpr int64_t WIDTH = sizeof(Vector) / sizeof(float), STRIDE = WIDTH * N_VECTORS;
    const float *first;
    int64_t next;  // floats from one book to the next
    int n;

    explicit Books(const sedaq_matrix &m) : first(m.codebooks), next(m.n_entries * STRIDE), n(N_BOOKS ? N_BOOKS : m.n_codebooks) {}

    // The sum of one group's codewords.
    template <class Code>
    inline void sum(const Code *codes, Vector *sum) const {
        for (int v = 0; v < N_VECTORS; v++) load(sum[v], first + codes[0] * STRIDE + v * WIDTH);
        for (int i = 1; i < (N_BOOKS ? N_BOOKS : n); i++) {
            for (int v = 0; v < N_VECTORS; v++) {
                Vector word;
                load(word, first + i * next + codes[i] * STRIDE + v * WIDTH);
                sum[v] += word;
            }
        }
    }
};

// Codewords are stored whole: what is too much is overwritten by the next one, and by the padding at the end.
struct DecodeRow {
    const sedaq_matrix &m;
    int64_t n_groups;
    float *out;

    template <class Vector, int N_VECTORS, int N_BOOKS, class Code>
    void run(const Code *codes) const {
        const Books<Vector, N_VECTORS, N_BOOKS> books(m);
        const int64_t g = m.group_size, n = n_groups;
        float *to = out;
#pragma GCC unroll 4
        for (int64_t j = 0; j < n; j++, codes += N_BOOKS ? N_BOOKS : books.n, to += g) {
            Vector sum[N_VECTORS];
            books.sum(codes, sum);
            store(to, sum);
        }
    }
};

// `work.run` with what is known of a format as constants, from code number `at` on.
template <class Vector, int N_VECTORS, class Code, class Work>
static void with_books(const sedaq_matrix &m, const Code *codes, const Work &work) {
    switch (m.n_codebooks) {
        case 1: return work.template run<Vector, N_VECTORS, 1>(codes);
        case 2: return work.template run<Vector, N_VECTORS, 2>(codes);
        case 3: return work.template run<Vector, N_VECTORS, 3>(codes);
        case 4: return work.template run<Vector, N_VECTORS, 4>(codes);
        default: return work.template run<Vector, N_VECTORS, 0>(codes);
    }
}

template <class Code, class Work>
static void with_stride(const sedaq_matrix &m, const Code *codes, const Work &work) {
    switch (m.stride) {
        case 1: return with_books<float, 1>(m, codes, work);
        case 2: return with_books<Pair, 1>(m, codes, work);
        case 4: return with_books<Quad, 1>(m, codes, work);
        case 8: return with_books<Octet, 1>(m, codes, work);
        case 16: return with_books<Sixteen, 1>(m, codes, work);
        case 32: return with_books<Sixteen, 2>(m, codes, work);
        case 64: return with_books<Sixteen, 4>(m, codes, work);
        case 128: return with_books<Sixteen, 8>(m, codes, work);
        default: return with_books<Sixteen, 16>(m, codes, work);  // SEDAQ_LONGEST_GROUP
    }
}

template <class Work>
static void with_format(const sedaq_matrix &m, int64_t at, const Work &work) {
    if (m.code_bytes == 1)
        with_stride(m, (const uint8_t *)m.codes + at, work);
    else
        with_stride(m, (const uint16_t *)m.codes + at, work);
}

// Groups first … last − 1 of up to ROWS rows; missing rows and columns up to `columns` become zero.
static void decode(const sedaq_matrix &m, int64_t row, int64_t first, int64_t last, int64_t columns, const Chunk &out) {
    for (int64_t r = 0; r < ROWS; r++) {
        float *values = out.values + r * out.stride;
        int64_t n = 0;
        if (row + r < m.n_out) {
            with_format(m, ((row + r) * m.n_groups + first) * m.n_codebooks, DecodeRow{m, last - first, values});
            const int64_t real = m.n_in - first * m.group_size;  // padded columns of the last group hold what codewords hold
            n = (last - first) * m.group_size;
            if (n > real) n = real;
        }
        for (; n < columns; n++) values[n] = 0;
    }
}

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static int64_t greatest_common_divisor(int64_t a, int64_t b) { return b ? greatest_common_divisor(b, a % b) : a; }

// Groups that are decoded at once: whole steps of `step` columns, about 256 of them.
static int64_t groups_a_chunk(int64_t g, int64_t step) {
    const int64_t least = step / greatest_common_divisor(g, step);
    const int64_t times = 256 / (least * g);
    return least * (times > 1 ? times : 1);
}

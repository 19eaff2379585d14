// Codes to weights, 16 rows at a time. Included into a namespace for each instruction set; no templates of the standard library here,
// since the linker would merge them across instruction sets.

typedef float Sixteen __attribute__((vector_size(64)));

// Vectors of so many numbers, of 64 bytes at most.
template <class Number>
struct Vectors;

template <>
struct Vectors<float> {
    typedef float V1, V2 __attribute__((vector_size(8))), V4 __attribute__((vector_size(16))), V8 __attribute__((vector_size(32)));
    typedef Sixteen V16, V32;
};

template <>
struct Vectors<uint16_t> {
    typedef uint16_t V1, V2 __attribute__((vector_size(4))), V4 __attribute__((vector_size(8))), V8 __attribute__((vector_size(16))),
        V16 __attribute__((vector_size(32))), V32 __attribute__((vector_size(64)));
};

template <class Vector>
static inline void load(Vector &x, const void *from) { __builtin_memcpy(&x, from, sizeof x); }  // at any address

template <class Vector>
static inline void store(void *to, const Vector &x) { __builtin_memcpy(to, &x, sizeof x); }

enum { ROWS = 16 };  // decoded together: one vector of float32

template <class Number>
struct Chunk {
    Number *values;    // ROWS rows of `stride` numbers, unscaled
    int64_t stride;
};

// Codebooks by value, so that no store makes the compiler read their place again. 0 books stand for any number.
template <class Number, class Vector, int N_VECTORS, int N_BOOKS>
struct Books {
    static constexpr int64_t WIDTH = sizeof(Vector) / sizeof(Number), STRIDE = WIDTH * N_VECTORS;
    const Number *first;
    int64_t next;  // numbers from one book to the next
    int n;

    Books(const sedaq_matrix &m, const Number *codebooks) : first(codebooks), next(m.n_entries * STRIDE), n(N_BOOKS ? N_BOOKS : m.n_codebooks) {}

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
template <class N>
struct DecodeRow {
    typedef N Number;
    const sedaq_matrix &m;
    const Number *codebooks;
    int64_t n_groups;
    Number *out;

    template <class Vector, int N_VECTORS, int N_BOOKS, class Code>
    void run(const Code *codes) const {
        const Books<Number, Vector, N_VECTORS, N_BOOKS> books(m, codebooks);
        const int64_t g = m.group_size, n = n_groups;
        Number *to = out;
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

template <class Vector, int STRIDE, class Code, class Work>
static void with_vectors(const sedaq_matrix &m, const Code *codes, const Work &work) {
    with_books<Vector, STRIDE * (int)sizeof(typename Work::Number) / (int)sizeof(Vector)>(m, codes, work);
}

template <class Code, class Work>
static void with_stride(const sedaq_matrix &m, const Code *codes, const Work &work) {
    typedef Vectors<typename Work::Number> V;
    switch (m.stride) {
        case 1: return with_vectors<typename V::V1, 1>(m, codes, work);
        case 2: return with_vectors<typename V::V2, 2>(m, codes, work);
        case 4: return with_vectors<typename V::V4, 4>(m, codes, work);
        case 8: return with_vectors<typename V::V8, 8>(m, codes, work);
        case 16: return with_vectors<typename V::V16, 16>(m, codes, work);
        case 32: return with_vectors<typename V::V32, 32>(m, codes, work);
        case 64: return with_vectors<typename V::V32, 64>(m, codes, work);
        case 128: return with_vectors<typename V::V32, 128>(m, codes, work);
        default: return with_vectors<typename V::V32, SEDAQ_LONGEST_GROUP>(m, codes, work);
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
template <class Number>
static void decode(const sedaq_matrix &m, const Number *codebooks, int64_t row, int64_t first, int64_t last, int64_t columns, const Chunk<Number> &out) {
    for (int64_t r = 0; r < ROWS; r++) {
        Number *values = out.values + r * out.stride;
        int64_t n = 0;
        if (row + r < m.n_out) {
            with_format(m, ((row + r) * m.n_groups + first) * m.n_codebooks, DecodeRow<Number>{m, codebooks, last - first, values});
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

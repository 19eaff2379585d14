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

// A codeword is stored whole, in `Vector`s; what is too much is overwritten by the next one, and by the padding at the end.
template <class Vector, class Code, int N_BOOKS>
static void decode_row(const sedaq_matrix &m, const Code *codes, int64_t n_groups, float *out) {
    const int64_t g = m.group_size, stride = m.stride, book = (int64_t)m.n_entries * stride;
    const int n_books = N_BOOKS ? N_BOOKS : m.n_codebooks;
    constexpr int64_t width = sizeof(Vector) / sizeof(float);
    for (int64_t j = 0; j < n_groups; j++, codes += n_books, out += g) {
        for (int64_t w = 0; w < stride; w += width) {
            const float *words = m.codebooks + w;
            Vector sum, word;
            load(sum, words + codes[0] * stride);
            for (int i = 1; i < n_books; i++) {
                load(word, words + i * book + codes[i] * stride);
                sum += word;
            }
            store(out + w, sum);
        }
    }
}

template <class Vector, class Code>
static void decode_row_of(const sedaq_matrix &m, const Code *codes, int64_t n_groups, float *out) {
    switch (m.n_codebooks) {
        case 1: return decode_row<Vector, Code, 1>(m, codes, n_groups, out);
        case 2: return decode_row<Vector, Code, 2>(m, codes, n_groups, out);
        case 3: return decode_row<Vector, Code, 3>(m, codes, n_groups, out);
        default: return decode_row<Vector, Code, 0>(m, codes, n_groups, out);
    }
}

template <class Code>
static void decode_row_at(const sedaq_matrix &m, const Code *codes, int64_t n_groups, float *out) {
    switch (m.stride) {
        case 1: return decode_row_of<float, Code>(m, codes, n_groups, out);
        case 2: return decode_row_of<Pair, Code>(m, codes, n_groups, out);
        case 4: return decode_row_of<Quad, Code>(m, codes, n_groups, out);
        case 8: return decode_row_of<Octet, Code>(m, codes, n_groups, out);
        default: return decode_row_of<Sixteen, Code>(m, codes, n_groups, out);
    }
}

// Groups first … last − 1 of up to ROWS rows; missing rows and columns up to `columns` become zero.
static void decode(const sedaq_matrix &m, int64_t row, int64_t first, int64_t last, int64_t columns, const Chunk &out) {
    for (int64_t r = 0; r < ROWS; r++) {
        float *values = out.values + r * out.stride;
        int64_t n = 0;
        if (row + r < m.n_out) {
            const int64_t at = ((row + r) * m.n_groups + first) * m.n_codebooks;
            if (m.code_bytes == 1)
                decode_row_at(m, (const uint8_t *)m.codes + at, last - first, values);
            else
                decode_row_at(m, (const uint16_t *)m.codes + at, last - first, values);
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

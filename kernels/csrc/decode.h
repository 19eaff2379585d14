// Codes to weights. Included into a namespace for each instruction set; no templates of the standard library here,
// since the linker would merge them across instruction sets.

enum { ROWS = 16 };  // decoded together: one vector of float32

template <class Number>
struct Chunk {
    Number *values;    // ROWS rows of `stride` numbers, unscaled
    int64_t stride;
};

// A codebook's piece of a vector: as much of a codeword of STRIDE numbers as is loaded at once. 0 stands for what is known only at run time.
template <class Number, int STRIDE>
struct Piece {
    enum { WIDTH = STRIDE && STRIDE * sizeof(Number) < REGISTER ? STRIDE : REGISTER / (int)sizeof(Number) };
    typedef Number Vector __attribute__((vector_size(WIDTH * sizeof(Number))));
};

// The sum of one group's codewords, from number v of each on.
template <class Vector, int N_BOOKS, class Number, class Code>
static inline Vector sum_words(const Number *books, const Code *codes, int n_books, int64_t stride, int64_t next, int64_t v) {
    Vector sum;
    load(sum, books + codes[0] * stride + v);
#pragma GCC unroll 4
    for (int i = 1; i < (N_BOOKS ? N_BOOKS : n_books); i++) {
        Vector word;
        load(word, books + i * next + codes[i] * stride + v);
        sum += word;
    }
    return sum;
}

// Codewords are stored whole: what is too much is overwritten by the next one, and by the padding at the end.
template <class N>
struct DecodeRow {
    typedef N Number;
    const sedaq_matrix &m;
    const Number *books;
    int64_t n_groups;
    Number *out;

    template <int STRIDE, int N_BOOKS, class Code>
    void run(const Code *codes) const {
        typedef Piece<Number, STRIDE> P;
        const int64_t stride = STRIDE ? STRIDE : m.stride, next = m.n_entries * stride, g = m.group_size, n = n_groups;
        const int n_books = N_BOOKS ? N_BOOKS : m.n_codebooks;
        const Number *first = books;
        Number *to = out;
#pragma GCC unroll 4
        for (int64_t j = 0; j < n; j++, codes += n_books, to += g)
            for (int64_t v = 0; v < stride; v += P::WIDTH)
                store(to + v, sum_words<typename P::Vector, N_BOOKS>(first, codes, n_books, stride, next, v));
    }
};

template <int STRIDE, class Code, class Work>
static void with_books(const sedaq_matrix &m, const Code *codes, const Work &work) {
    switch (m.n_codebooks) {
        case 1: return work.template run<STRIDE, 1>(codes);
        case 2: return work.template run<STRIDE, 2>(codes);
        case 3: return work.template run<STRIDE, 3>(codes);
        case 4: return work.template run<STRIDE, 4>(codes);
        default: return work.template run<STRIDE, 0>(codes);
    }
}

template <class Code, class Work>
static void with_stride(const sedaq_matrix &m, const Code *codes, const Work &work) {
    switch (m.stride) {
        case 1: return with_books<1>(m, codes, work);
        case 2: return with_books<2>(m, codes, work);
        case 4: return with_books<4>(m, codes, work);
        case 8: return with_books<8>(m, codes, work);
        case 16: return with_books<16>(m, codes, work);
        default: return with_books<0>(m, codes, work);
    }
}

// `work.run` with what is known of a format as constants, from code number `at` on.
template <class Work>
static void with_format(const sedaq_matrix &m, int64_t at, const Work &work) {
    if (m.code_bytes == 1)
        with_stride(m, (const uint8_t *)m.codes + at, work);
    else
        with_stride(m, (const uint16_t *)m.codes + at, work);
}

// Groups first … last − 1 of one row.
template <class Number>
static void decode_groups(const sedaq_matrix &m, const Number *books, int64_t row, int64_t first, int64_t last, Number *out) {
    with_format(m, (row * m.n_groups + first) * m.n_codebooks, DecodeRow<Number>{m, books, last - first, out});
}

// Groups first … last − 1 of up to ROWS rows; missing rows and columns up to `columns` become zero.
template <class Number>
static void decode(const sedaq_matrix &m, const Number *codebooks, int64_t row, int64_t first, int64_t last, int64_t columns, const Chunk<Number> &out) {
    for (int64_t r = 0; r < ROWS; r++) {
        Number *values = out.values + r * out.stride;
        int64_t n = 0;
        if (row + r < m.n_out) {
            decode_groups(m, codebooks, row + r, first, last, values);
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

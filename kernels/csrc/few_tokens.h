// Up to FEW tokens: every codeword is multiplied as soon as it is looked up, and codes are read once.

enum { FEW = 8, AHEAD = 24 };  // rows whose codes are fetched ahead

// Rows from `row` on, `n_rows` of them, times N_TOKENS tokens of `x_stride` floats each; sums go to out[token][row].
template <int N_TOKENS>
struct DotRows {
    typedef float Number;
    const sedaq_matrix &m;
    const float *x;
    int64_t x_stride, n_rows;
    float *out;
    int64_t out_stride;

    template <class Vector, int N_VECTORS, int N_BOOKS, class Code>
    void run(const Code *codes) const {
        constexpr int CHAINS = N_TOKENS > 2 ? 1 : 4;  // additions wait for each other: several sums hide that
        const Books<float, Vector, N_VECTORS, N_BOOKS> books(m, m.codebooks);
        const int64_t g = m.group_size, n_groups = m.n_groups, n_books = N_BOOKS ? N_BOOKS : books.n;
        const int64_t row_bytes = n_groups * n_books * (int64_t)sizeof(Code);
        for (int64_t r = 0; r < n_rows; r++) {
            for (int64_t b = 0; b < row_bytes; b += 64) __builtin_prefetch((const char *)codes + AHEAD * row_bytes + b);
            Vector sums[N_TOKENS][CHAINS] = {};
            int64_t j = 0;
            for (; j + CHAINS <= n_groups; j += CHAINS) {
#pragma GCC unroll 4
                for (int u = 0; u < CHAINS; u++, codes += n_books) add(books, codes, x + (j + u) * g, sums, u);
            }
            for (; j < n_groups; j++, codes += n_books) add(books, codes, x + j * g, sums, 0);
            for (int t = 0; t < N_TOKENS; t++) {
                Vector sum = sums[t][0];
                for (int u = 1; u < CHAINS; u++) sum += sums[t][u];
                float values[books.WIDTH], total = 0;
                store(values, sum);
                for (int i = 0; i < books.WIDTH; i++) total += values[i];
                out[t * out_stride + r] = total;
            }
        }
    }

    template <class Vector, int N_VECTORS, int N_BOOKS, int CHAINS, class Code>
    inline void add(const Books<float, Vector, N_VECTORS, N_BOOKS> &books, const Code *codes, const float *columns, Vector (*sums)[CHAINS], int u) const {
        Vector word[N_VECTORS];
        books.sum(codes, word);
#pragma GCC unroll 8
        for (int t = 0; t < N_TOKENS; t++)
            for (int v = 0; v < N_VECTORS; v++) {
                Vector of_token;
                load(of_token, columns + t * x_stride + v * books.WIDTH);
                sums[t][u] += word[v] * of_token;
            }
    }
};

static void dot_rows(const sedaq_matrix &m, const float *x, int64_t x_stride, int64_t n_tokens, int64_t row, int64_t n_rows, float *out) {
    const int64_t at = row * m.n_groups * m.n_codebooks;
    if (n_tokens == 1)
        with_format(m, at, DotRows<1>{m, x, x_stride, n_rows, out, ROWS});
    else if (n_tokens == 2)
        with_format(m, at, DotRows<2>{m, x, x_stride, n_rows, out, ROWS});
    else if (n_tokens <= 4)
        with_format(m, at, DotRows<4>{m, x, x_stride, n_rows, out, ROWS});
    else
        with_format(m, at, DotRows<FEW>{m, x, x_stride, n_rows, out, ROWS});
}

// As Product::run.
[[maybe_unused]] static int product_of_few(const sedaq_matrix &m, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    const int64_t n_tokens = tokens_of(x), padded = m.n_groups * m.group_size + m.stride;  // codewords are read whole
    if (!of_call.reserve(Scratch::bytes_of<float>(FEW * padded))) return 2;
    float *rows = of_call.take<float>(FEW * padded);
    for (int64_t i = 0; i < FEW * padded; i++) rows[i] = 0;
    for (int64_t t = 0; t < n_tokens; t++) gather_token(x, t, rows + t * padded);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < m.n_out; row += ROWS) {
        float sums[FEW * ROWS];
        const int64_t n_rows = smaller(ROWS, m.n_out - row);
        dot_rows(m, rows, padded, n_tokens, row, n_rows, sums);
        for (int64_t t = 0; t < n_tokens; t++)
            for (int64_t r = 0; r < n_rows; r++) {
                const float value = sums[t * ROWS + r] * m.scales[row + r] + (m.bias ? m.bias[row + r] : 0);
                put(x, y, t * y_stride + row + r, value);
            }
    }
    return 0;
}

// Up to FEW tokens: each row is decoded into the first-level cache and multiplied at once, and codes are read once.

enum { FEW = 8, AHEAD = 24 };  // rows whose codes are fetched ahead

// Products of one row with N tokens, all of so many columns, which are whole vectors padded with zeros; out[t · ROWS] is that of token t.
template <int N>
static void dot_row(const float *row, const float *x, int64_t columns, float *out) {
    constexpr int CHAINS = 8 / N, WIDTH = sizeof(Floats) / 4;  // additions wait for each other: several sums hide that
    Floats sums[N][CHAINS] = {};
    for (int64_t c = 0; c < columns; c += CHAINS * WIDTH) {
#pragma GCC unroll 8
        for (int u = 0; u < CHAINS; u++) {
            Floats weights;
            load(weights, row + c + u * WIDTH);
#pragma GCC unroll 8
            for (int t = 0; t < N; t++) {
                Floats of_token;
                load(of_token, x + t * columns + c + u * WIDTH);
                sums[t][u] += weights * of_token;
            }
        }
    }
    for (int t = 0; t < N; t++) {
        for (int u = 1; u < CHAINS; u++) sums[t][0] += sums[t][u];
        float total = 0;
        for (int i = 0; i < WIDTH; i++) total += sums[t][0][i];
        out[t * ROWS] = total;
    }
}

// Products of one row with one or two tokens: every codeword is multiplied as soon as it is looked up.
template <int N>
struct DotCodes {
    typedef float Number;
    const sedaq_matrix &m;
    const float *tokens;
    int64_t token_stride;
    float *out;

    template <int STRIDE, int N_BOOKS, class Code>
    void run(const Code *codes) const {
        typedef Piece<float, STRIDE> P;
        typedef typename P::Vector Vector;
        constexpr int CHAINS = 4;
        const int64_t stride = STRIDE ? STRIDE : m.stride, next = m.n_entries * stride, g = m.group_size, n = m.n_groups, apart = token_stride;
        const int n_books = N_BOOKS ? N_BOOKS : m.n_codebooks;
        const float *books = m.codebooks, *x = tokens;
        Vector sums[CHAINS][N] = {};
        const auto add = [&](Vector *sum) {
            for (int64_t v = 0; v < stride; v += P::WIDTH) {
                const Vector word = sum_words<Vector, N_BOOKS>(books, codes, n_books, stride, next, v);
#pragma GCC unroll 2
                for (int t = 0; t < N; t++) {
                    Vector of_token;
                    load(of_token, x + t * apart + v);
                    sum[t] += of_token * word;
                }
            }
            codes += n_books;
            x += g;
        };
        int64_t j = 0;
        for (; j + CHAINS <= n; j += CHAINS)
#pragma GCC unroll 4
            for (int u = 0; u < CHAINS; u++) add(sums[u]);
        for (; j < n; j++) add(sums[0]);
        for (int t = 0; t < N; t++) {
            const Vector sum = (sums[0][t] + sums[1][t]) + (sums[2][t] + sums[3][t]);
            float total = 0;
            for (int i = 0; i < P::WIDTH; i++) total += sum[i];
            out[t * ROWS] = total;
        }
    }
};

// `weights` is room for a row.
static void dot_tokens(const sedaq_matrix &m, int64_t row, const float *tokens, int64_t columns, int64_t n_tokens, float *weights, float *out) {
    const int64_t codes = row * m.n_groups * m.n_codebooks;
    if (n_tokens == 1) return with_format(m, codes, DotCodes<1>{m, tokens, columns, out});
    if (n_tokens == 2) return with_format(m, codes, DotCodes<2>{m, tokens, columns, out});
    decode_groups(m, m.codebooks, row, 0, m.n_groups, weights);
    for (int64_t i = m.n_groups * m.group_size; i < columns; i++) weights[i] = 0;
    if (n_tokens <= 4)
        dot_row<4>(weights, tokens, columns, out);
    else
        dot_row<8>(weights, tokens, columns, out);
}

// As Product::run.
[[maybe_unused]] static int product_of_few(const sedaq_matrix &m, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    const int64_t n_tokens = tokens_of(x), coded = m.n_groups * m.group_size, columns = round_up(coded, 2 * REGISTER);
    const int64_t row_bytes = m.n_groups * m.n_codebooks * m.code_bytes;
    if (!of_call.reserve(Scratch::bytes_of<float>(FEW * columns + m.stride))) return 2;
    float *tokens = of_call.take<float>(FEW * columns + m.stride);
    for (int64_t i = 0; i < FEW * columns + m.stride; i++) tokens[i] = 0;
    for (int64_t t = 0; t < n_tokens; t++) gather_token(x, t, tokens + t * columns);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const bool ready = of_thread.reserve(Scratch::bytes_of<float>(columns + m.stride));
        float *weights = of_thread.take<float>(columns + m.stride);
        if (!ready) {
#pragma omp atomic write
            failed = 2;
        }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < m.n_out; row += ROWS) {
            float sums[FEW * ROWS];
            const int64_t n_rows = ready ? smaller(ROWS, m.n_out - row) : 0;
            for (int64_t r = 0; r < n_rows; r++) {
                for (int64_t b = 0; b < row_bytes; b += 64) __builtin_prefetch((const char *)m.codes + (row + r + AHEAD) * row_bytes + b);
                dot_tokens(m, row + r, tokens, columns, n_tokens, weights, sums + r);
            }
            for (int64_t t = 0; t < n_tokens; t++)
                for (int64_t r = 0; r < n_rows; r++) {
                    const float value = sums[t * ROWS + r] * m.scales[row + r] + (m.bias ? m.bias[row + r] : 0);
                    put(x, y, t * y_stride + row + r, value);
                }
        }
    }
    return failed;
}

// The product by lookup: for a tile of tokens, tables of <group of x, codeword> with tokens innermost. An entry is one cache line, so that a
// code costs one load and one addition for the whole tile, however long groups are. Included after product.h
// and entries.h. Each instruction set defines LOOKUP_SUMS, how many vectors of 16 sums fit into its registers.

enum { ROWS_AHEAD = 8 };                        // whose codes are fetched ahead: processors do not foresee such strides
static const int64_t TABLES = 64;               // that are held at once: short ones then lie in the first-level cache
static const int64_t LOOKUP_BYTES = (REGISTER == 64 ? 512 : 192) << 10;  // of the second-level cache
static const int64_t HALF_TABLES = 16;          // the same of codes' halves
static const int64_t MANY_ROWS = 2048;          // which pay for all sums of halves in a table of their own

// 16 rows of up to 16 floats to as many rows of 16. All of `in` may be read.
static void transpose_block(const float *in, int64_t in_stride, int64_t n, float *out, int64_t out_stride) {
#ifdef WITH_TRANSPOSE
    __m512i rows[16];
    for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(in + i * in_stride);
    transpose(rows);
    for (int64_t i = 0; i < n; i++) _mm512_storeu_si512(out + i * out_stride, rows[i]);
#else
    for (int64_t i = 0; i < n / 4 * 4; i += 4)
        for (int64_t j = 0; j < 16; j += 4) transpose_four(in + j * in_stride + i, in_stride, out + i * out_stride + j, out_stride);
    for (int64_t i = n / 4 * 4; i < n; i++)
        for (int64_t j = 0; j < 16; j++) out[i * out_stride + j] = in[j * in_stride + i];
#endif
}

template <int PARTS>
struct LookupProduct {
    typedef Entry<PARTS> Of;
    typedef typename Of::Sum Sum;
    static const int64_t TOKENS = 16 * PARTS;
    enum { SHIFT = 4 };  // bits of half a code of 8
    enum { WORDS = LOOKUP_SUMS > PARTS ? LOOKUP_SUMS / PARTS : 1 };  // codewords that are multiplied at once: what fits into registers

    const sedaq_matrix &m;
    const sedaq_input &x;
    int64_t n_codes, columns;  // of a row; the last group whole
    int64_t table_bytes, pass;  // tables that are held at once
    int64_t half = 1, n_words;  // rows and columns of a hierarchical codebook; codewords that are multiplied, in whole steps
    float longest = 0, usual = 0;  // codeword; standard deviation of the widest codebook
    float *books = nullptr;     // (n_codebooks, group_size, n_words)
    // Whether halves of a hierarchical code are looked up by themselves: twice as many lookups, but short tables that lie in the first-level
    // cache, which pays where an entry fills several registers.
    bool by_halves;

    LookupProduct(const sedaq_matrix &matrix, const sedaq_input &input) : m(matrix), x(input) {
        n_codes = m.n_groups * m.n_codebooks;
        columns = m.n_groups * m.group_size;
        while (half * half < m.n_entries) half *= 2;
        n_words = round_up(m.structure == SEDAQ_HIERARCHICAL ? 2 * half : m.structure == SEDAQ_MIRRORED ? m.n_entries / 2 : m.n_entries, WORDS);
        by_halves = PARTS == 1 && REGISTER < 64 && m.structure == SEDAQ_HIERARCHICAL && half == 1 << SHIFT && m.n_out < MANY_ROWS;
        table_bytes = (by_halves ? n_words : round_up(m.n_entries, WORDS)) * ENTRY;
        pass = by_halves ? HALF_TABLES : smaller(TABLES, LOOKUP_BYTES / table_bytes);
        pass = pass < 1 ? 1 : smaller(pass, n_codes);
        for (int64_t b = 0; b < m.n_codebooks; b++) {
            double all = 0;
            for (int64_t k = 0; k < m.n_entries; k++) {
                float squares = 0;
                for (int64_t i = 0; i < m.group_size; i++) squares += word(b, k)[i] * word(b, k)[i];
                longest = squares > longest ? squares : longest;
                all += squares;
            }
            all /= (double)(m.n_entries * m.group_size);
            usual = all > usual ? (float)all : usual;
        }
        longest = __builtin_sqrtf(longest);
        usual = __builtin_sqrtf(usual);
    }

    const float *word(int64_t book, int64_t k) const { return m.codebooks + (book * m.n_entries + k) * m.stride; }

    // The unit of a token's entries; `row` is divided by it.
    float scale(float *row) const {
        float greatest = 0;  // squared norm of a group
        for (int64_t j = 0; j < columns && PARTS > 1; j += m.group_size) {
            float squares = 0;
            for (int64_t i = j; i < j + m.group_size; i++) squares += row[i] * row[i];
            greatest = squares > greatest || squares != squares ? squares : greatest;
        }
        greatest = __builtin_sqrtf(greatest);
        const float unit = Of::unit(greatest * longest, greatest * usual * USUAL);
        if (PARTS == 1 || unit < 1e-30f) return 1;
        for (int64_t i = 0; i < columns; i++) row[i] *= 1 / unit;
        return unit;
    }

    // A tile's tokens from `first` on as columns (columns, TOKENS) in units of entries; those from `last` on are zero.
    // `row` has room for 16.
    void gather(int64_t first, int64_t last, float *row, float *tile, float *scales) const {
        for (int64_t t = 0; t < TOKENS; t++) {
            scales[t] = 1;
            if (first + t < last) {
                gather_token(x, first + t, row);
                scales[t] = scale(row);
            } else {
                for (int64_t i = 0; i < columns; i++) row[i] = 0;
            }
            if (t % 16 < 15) {
                row += columns;
                continue;
            }
            row -= 15 * columns;
            for (int64_t i = 0; i < columns; i += 16) transpose_block(row + i, columns, smaller(16, columns - i), tile + i * TOKENS + t - 15, TOKENS);
        }
    }

    // Of products of codewords with the largest group: standard deviations that are not clipped. More would make units coarser, fewer clip more
    // (benchmarks/byte_tables.py).
    static constexpr float USUAL = 4;

    // (n_codebooks, group_size, width): codewords side by side, and zeros. All of them, or those that the others are made of.
    void transpose_books(float *out, int64_t width, int32_t structure) const {
        const int64_t n = structure == SEDAQ_MIRRORED ? m.n_entries / 2 : m.n_entries;
        for (int64_t b = 0; b < m.n_codebooks; b++)
            for (int64_t i = 0; i < m.group_size; i++, out += width)
                for (int64_t k = 0; k < width; k++) {
                    if (structure != SEDAQ_HIERARCHICAL)
                        out[k] = k < n ? word(b, k)[i] : 0;
                    else if (k < half)
                        out[k] = word(b, k * half)[i];
                    else
                        out[k] = k < 2 * half ? word(b, k - half)[i] - word(b, 0)[i] : 0;
                }
    }

    // Products of WORDS codewords from k on with one group of the tile; G is a group's length where it is known.
    template <int G>
    __attribute__((always_inline)) inline void products(const float *words, const float *group, Sixteen (*sums)[PARTS]) const {
        const int64_t g = G ? G : m.group_size, next = n_words;
#pragma GCC unroll 16
        for (int w = 0; w < WORDS; w++)
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) clear(sums[w][p]);
#pragma GCC unroll 8
        for (int64_t i = 0; i < g; i++) {
            Sixteen of_tokens[PARTS];
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) load(of_tokens[p], group + i * TOKENS + 16 * p);
#pragma GCC unroll 16
            for (int w = 0; w < WORDS; w++)
#pragma GCC unroll 4
                for (int p = 0; p < PARTS; p++) sums[w][p] += words[i * next + w] * of_tokens[p];
        }
    }

    // The table of one codebook and one group; half of a mirrored one is the other with its sign changed.
    template <int G>
    void fill(const float *words, const float *group, char *table) const {
        const int64_t n = m.structure == SEDAQ_MIRRORED ? m.n_entries / 2 : n_words;
        for (int64_t k = 0; k < n; k += WORDS) {
            Sixteen values[WORDS][PARTS];
            products<G>(words + k, group, values);
#pragma GCC unroll 16
            for (int w = 0; w < WORDS; w++) Of::pack(values[w], table + (k + w) * ENTRY);
            if (m.structure != SEDAQ_MIRRORED) continue;
#pragma GCC unroll 16
            for (int w = 0; w < WORDS; w++) {
#pragma GCC unroll 4
                for (int p = 0; p < PARTS; p++) values[w][p] = -values[w][p];
                if (k + w < n) Of::pack(values[w], table + (n + k + w) * ENTRY);
            }
        }
    }

    enum { LONGEST_HALF = 64 };

    // All sums of two halves.
    void fill_hierarchical(const float *words, const float *group, char *table) const {
        typename Of::Half halves[2 * LONGEST_HALF + WORDS];
        for (int64_t k = 0; k < 2 * half; k += WORDS) {
            Sixteen values[WORDS][PARTS];
            products<0>(words + k, group, values);
#pragma GCC unroll 16
            for (int w = 0; w < WORDS; w++) halves[k + w] = Of::half(values[w], k + w < half);
        }
        for (int64_t h = 0; h < half; h++)
            for (int64_t k = 0; k < half; k++) Of::join(halves[h], halves[half + k], table + (h * half + k) * ENTRY);
    }

    // The table of one code of a row.
    void fill_table(int64_t code, const float *tile, char *table) const {
        const float *group = tile + code / m.n_codebooks * m.group_size * TOKENS, *words = books + code % m.n_codebooks * m.group_size * n_words;
        if (m.structure == SEDAQ_HIERARCHICAL && !by_halves)
            fill_hierarchical(words, group, table);
        else if (m.group_size == 4)
            fill<4>(words, group, table);
        else if (m.group_size == 8)
            fill<8>(words, group, table);
        else
            fill<0>(words, group, table);
    }

    template <class Code>
    void add_rows(const Code *codes, int64_t n_rows, int64_t n, const char *tables, Sum *sums) const {
        constexpr int TOGETHER = Of::TOGETHER;
        int64_t r = 0;
        for (; r + TOGETHER <= n_rows; r += TOGETHER) add_some<TOGETHER>(codes + r * n_codes, n, tables, sums + r * TOKENS);
        for (; r < n_rows; r++) add_some<1>(codes + r * n_codes, n, tables, sums + r * TOKENS);
    }

    template <int N, class Code>
    void add_some(const Code *codes, int64_t n, const char *tables, Sum *sums) const {
        for (int r = 0; r < N; r++)
            for (int64_t c = 0; c < n; c += 64 / (int64_t)sizeof(Code)) __builtin_prefetch(codes + (ROWS_AHEAD + r) * n_codes + c);
        if (by_halves)
            Of::template add<N, SHIFT>(codes, n_codes, n, tables, table_bytes, sums);
        else
            Of::template add<N, 0>(codes, n_codes, n, tables, table_bytes, sums);
    }

    // As Product::run. Threads share tiles of tokens, and where these do not divide, rows as well.
    int run(void *y, int64_t y_stride, int threads) {
        const int64_t n_tokens = tokens_of(x), n_tiles = (n_tokens + TOKENS - 1) / TOKENS;
        const int64_t shares = n_tiles % threads == 0 || n_tiles >= 4 * threads ? 1 : threads;
        const int64_t rows = round_up((m.n_out + shares - 1) / shares, ROWS);
        if (!of_call.reserve(Scratch::bytes_of<float>(m.n_codebooks * m.group_size * n_words))) return 2;
        books = of_call.take<float>(m.n_codebooks * m.group_size * n_words);
        transpose_books(books, n_words, m.structure);
        int failed = 0;
#pragma omp parallel num_threads(threads)
        {
            const bool ready = of_thread.reserve(
                Scratch::bytes_of<float>(16 * columns + 16) + Scratch::bytes_of<float>(columns * TOKENS) + Scratch::bytes_of<float>(TOKENS) +
                Scratch::bytes_of<char>(pass * table_bytes) + Scratch::bytes_of<Sum>(rows * TOKENS));
            float *row = of_thread.take<float>(16 * columns + 16), *tile = of_thread.take<float>(columns * TOKENS), *scales = of_thread.take<float>(TOKENS);
            char *tables = of_thread.take<char>(pass * table_bytes);
            Sum *sums = of_thread.take<Sum>(rows * TOKENS);
            for (int64_t i = 0; i < 16 * columns && ready; i++) row[i] = 0;
            if (!ready) {
#pragma omp atomic write
                failed = 2;
            }
#pragma omp for schedule(dynamic)
            for (int64_t item = 0; item < n_tiles * shares; item++) {
                if (!ready) continue;
                const int64_t first = item / shares * TOKENS, start = item % shares * rows, n_rows = smaller(rows, m.n_out - start);
                gather(first, n_tokens, row, tile, scales);
                sum_rows(start, n_rows, tile, tables, sums);
                finish(first, n_tokens, start, n_rows, sums, scales, y, y_stride);
            }
        }
        return failed;
    }

    void sum_rows(int64_t start, int64_t n_rows, const float *tile, char *tables, Sum *sums) const {
        for (int64_t i = 0; i < n_rows * TOKENS; i++) sums[i] = 0;
        for (int64_t c = 0; c < n_codes; c += pass) {
            const int64_t n = smaller(pass, n_codes - c);
            for (int64_t i = 0; i < n; i++) fill_table(c + i, tile, tables + i * table_bytes);
            if (m.code_bytes == 1)
                add_rows((const uint8_t *)m.codes + start * n_codes + c, n_rows, n, tables, sums);
            else
                add_rows((const uint16_t *)m.codes + start * n_codes + c, n_rows, n, tables, sums);
        }
    }

    // Sums of 16 rows and 16 tokens at a time to y.
    void finish(int64_t first, int64_t last, int64_t start, int64_t n_rows, const Sum *sums, const float *scales, void *y, int64_t y_stride) const {
        const Sum offset = (Sum)Of::offset(n_codes);
        for (int64_t r = 0; r < n_rows; r += ROWS) {
            const int64_t n = smaller(ROWS, n_rows - r);
            for (int64_t t = 0; t < TOKENS && first + t < last; t += 16) {
                float block[ROWS][16], of_token[16][ROWS];
                for (int64_t i = 0; i < ROWS; i++)
                    for (int64_t j = 0; j < 16; j++) block[i][j] = i < n ? (float)(sums[(r + i) * TOKENS + t + j] - offset) : 0;
                transpose_block(block[0], 16, 16, of_token[0], ROWS);
                for (int64_t j = 0; j < 16 && first + t + j < last; j++) {
                    const int64_t at = (first + t + j) * y_stride + start + r;
                    for (int64_t i = 0; i < n; i++) {
                        const float value = of_token[j][i] * (scales[t + j] * m.scales[start + r + i]) + (m.bias ? m.bias[start + r + i] : 0);
                        put(x, y, at + i, value);
                    }
                }
            }
        }
    }
};

int lookup_float32(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return LookupProduct<1>(matrix, x).run(y, y_stride, threads);
}

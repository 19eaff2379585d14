// The product by lookup: for a tile of tokens, tables of <group of x, codeword> with tokens innermost. An entry is one cache line, so that a
// code costs one load and one addition for the whole tile, however long groups are. Included after product.h.
//
// An entry holds 16 tokens as float32, 32 as 16-bit or 64 as 8-bit integers. Its 16 dwords hold tokens i, 16 + i, … one above the other, so
// that packing and widening are shifts.

enum { ENTRY = 64, ROWS_AHEAD = 8 };            // bytes; rows whose codes are fetched ahead: processors do not foresee such strides
static const int64_t TABLES = 64;               // that are held at once: short ones then lie in the first-level cache
static const int64_t TABLES_BYTES = 512 << 10;  // of the second-level cache

typedef uint32_t Dwords __attribute__((vector_size(64)));
typedef int32_t SignedDwords __attribute__((vector_size(64)));
typedef uint16_t Words __attribute__((vector_size(64)));
typedef int16_t SignedWords __attribute__((vector_size(64)));

// PARTS numbers in a dword. The greatest entry, in units of the last place, is chosen for sums that cannot overflow between two flushes.
template <int PARTS>
struct Entry;

template <>
struct Entry<1> {
    typedef float Sum;

    static float unit(float, float) { return 1; }
    static int64_t offset(int64_t) { return 0; }
    static inline void pack(const Sixteen *values, char *out) { store(out, values[0]); }

    typedef Sixteen Half;
    static inline Half half(const Sixteen *values, bool) { return values[0]; }
    static inline void join(const Half &a, const Half &b, char *out) { store(out, a + b); }

    template <class Code>
    static inline void add(const Code *codes, int64_t n, const char *tables, int64_t table_bytes, float *sums) {
        Sixteen sum[4] = {};
        load(sum[0], sums);
        int64_t c = 0;
        for (; c + 4 <= n; c += 4, tables += 4 * table_bytes) {
#pragma GCC unroll 4
            for (int u = 0; u < 4; u++) {
                Sixteen entry;
                load(entry, tables + u * table_bytes + codes[c + u] * (int64_t)ENTRY);
                sum[u] += entry;
            }
        }
        for (; c < n; c++, tables += table_bytes) {
            Sixteen entry;
            load(entry, tables + codes[c] * (int64_t)ENTRY);
            sum[0] += entry;
        }
        store(sums, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
};

// Adding this makes a float's lowest bits those of the nearest integer.
static const float ROUNDER = 12582912;  // 1.5 · 2²³
static const int32_t ROUNDER_BITS = 0x4b400000;

template <>
struct Entry<2> {
    typedef int32_t Sum;
    enum { FLUSH = 16, GREATEST = 32767 / FLUSH - 1 };

    // `bound` is one that no entry passes.
    static float unit(float bound, float) { return bound / GREATEST; }
    static int64_t offset(int64_t) { return 0; }

    static inline Words packed(const Sixteen &low, const Sixteen &high) {
        return (Words)(((Dwords)(low + ROUNDER) & 0xffff) | (Dwords)(high + ROUNDER) << 16);
    }

    static inline void pack(const Sixteen *values, char *out) { store(out, packed(values[0], values[1])); }

    typedef Words Half;
    static inline Half half(const Sixteen *values, bool) { return packed(values[0], values[1]); }
    static inline void join(const Half &a, const Half &b, char *out) { store(out, a + b); }

    template <class Code>
    static inline void add(const Code *codes, int64_t n, const char *tables, int64_t table_bytes, int32_t *sums) {
        SignedDwords low, high;
        load(low, sums);
        load(high, sums + 16);
        int64_t c = 0;
        for (; c + FLUSH <= n; c += FLUSH, tables += FLUSH * table_bytes) flush<FLUSH>(codes + c, FLUSH, tables, table_bytes, low, high);
        if (c < n) flush<0>(codes + c, n - c, tables, table_bytes, low, high);
        store(sums, low);
        store(sums + 16, high);
    }

    template <int N, class Code>
    static inline void flush(const Code *codes, int64_t n, const char *tables, int64_t table_bytes, SignedDwords &low, SignedDwords &high) {
        Words sum = {};
#pragma GCC unroll 16
        for (int64_t c = 0; c < (N ? N : n); c++, tables += table_bytes) {
            Words entry;
            load(entry, tables + codes[c] * (int64_t)ENTRY);
            sum += entry;
        }
        low += (SignedDwords)((Dwords)sum << 16) >> 16;
        high += (SignedDwords)sum >> 16;
    }
};

template <>
struct Entry<4> {
    typedef int32_t Sum;
    enum { FLUSH = 255, MIDDLE = 128 };

    // Entries are unsigned and clipped: the few beyond `usual`, which only the largest groups can reach, cost less than coarser units would.
    static float unit(float bound, float usual) { return (usual < bound ? usual : bound) / 127; }
    static int64_t offset(int64_t n_codes) { return MIDDLE * n_codes; }

    static inline void pack(const Sixteen *values, char *out) {
        Dwords packed = {};
#pragma GCC unroll 4
        for (int p = 3; p >= 0; p--) packed = (packed << 8) + clipped(values[p], MIDDLE, 0, 255);
        store(out, packed);
    }

    // The nearest integer of value + offset, between least and greatest.
    static inline Dwords clipped(const Sixteen &value, float offset, int32_t least, int32_t greatest) {
        SignedDwords bits = (SignedDwords)(value + (offset + ROUNDER)) - ROUNDER_BITS;
        bits = bits > least ? bits : least;
        return (Dwords)(bits < greatest ? bits : greatest);
    }

    // Words of FRACTION parts of a unit, those of tokens in even bytes and in odd ones. The clipping keeps sums of two from overflow.
    static const int16_t FRACTION = 1 << 6, HALF = 187 * FRACTION, GREATEST = 256 * FRACTION - 1;
    struct Half {
        Words even, odd;
    };

    static inline Half half(const Sixteen *values, bool first) {
        Dwords parts[4];
        const int32_t offset = first ? MIDDLE * FRACTION + FRACTION / 2 : 0;
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) parts[p] = clipped(values[p] * (float)FRACTION, (float)offset, offset - HALF, offset + HALF);
        return {(Words)((parts[0] & 0xffff) | parts[2] << 16), (Words)((parts[1] & 0xffff) | parts[3] << 16)};
    }

    static inline Words between(SignedWords x) {
        x = x > 0 ? x : 0;
        return (Words)(x < GREATEST ? x : GREATEST);
    }

    static inline void join(const Half &a, const Half &b, char *out) {
        const Words even = between((SignedWords)(a.even + b.even)) >> 6, odd = between((SignedWords)(a.odd + b.odd)) >> 6;
        store(out, even | odd << 8);
    }

    template <class Code>
    static inline void add(const Code *codes, int64_t n, const char *tables, int64_t table_bytes, int32_t *sums) {
        for (int64_t c = 0; c < n; c += FLUSH, tables += FLUSH * table_bytes) flush(codes + c, smaller(FLUSH, n - c), tables, table_bytes, sums);
    }

    // Sums of words wrap around, but with the sums of their high bytes those of their low bytes are known.
    template <class Code>
    static inline void flush(const Code *codes, int64_t n, const char *tables, int64_t table_bytes, int32_t *sums) {
        Words all[2] = {}, high[2] = {};
        int64_t c = 0;
        for (; c + 4 <= n; c += 4, tables += 4 * table_bytes) {
#pragma GCC unroll 4
            for (int u = 0; u < 4; u++) {
                Words entry;
                load(entry, tables + u * table_bytes + codes[c + u] * (int64_t)ENTRY);
                all[u % 2] += entry;
                high[u % 2] += entry >> 8;
            }
        }
        for (; c < n; c++, tables += table_bytes) {
            Words entry;
            load(entry, tables + codes[c] * (int64_t)ENTRY);
            all[0] += entry;
            high[0] += entry >> 8;
        }
        const Words odd = high[0] + high[1], even = all[0] + all[1] - (odd << 8);
        const Dwords parts[4] = {(Dwords)even & 0xffff, (Dwords)odd & 0xffff, (Dwords)even >> 16, (Dwords)odd >> 16};
        for (int p = 0; p < 4; p++) {
            Dwords sum;
            load(sum, sums + 16 * p);
            store(sums + 16 * p, sum + parts[p]);
        }
    }
};

// 16 rows of up to 16 floats to as many rows of 16. All of `in` may be read.
static void transpose_block(const float *in, int64_t in_stride, int64_t n, float *out, int64_t out_stride) {
#ifdef WITH_TRANSPOSE
    __m512i rows[16];
    for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(in + i * in_stride);
    transpose(rows);
    for (int64_t i = 0; i < n; i++) _mm512_storeu_si512(out + i * out_stride, rows[i]);
#else
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < 16; j++) out[i * out_stride + j] = in[j * in_stride + i];
#endif
}

template <int PARTS>
struct LookupProduct {
    typedef Entry<PARTS> Of;
    typedef typename Of::Sum Sum;
    static const int64_t TOKENS = 16 * PARTS;
    enum { WORDS = LOOKUP_SUMS > PARTS ? LOOKUP_SUMS / PARTS : 1 };  // codewords that are multiplied at once: what fits into registers

    const sedaq_matrix &m;
    const sedaq_input &x;
    int64_t n_codes, columns;  // of a row; the last group whole
    int64_t table_bytes, pass;  // tables that are held at once
    int64_t half = 1, n_words;  // rows and columns of a hierarchical codebook; codewords that are multiplied, in whole steps
    float longest = 0, usual = 0;  // codeword; standard deviation of the widest codebook
    float *books = nullptr;     // (n_codebooks, group_size, n_words)

    LookupProduct(const sedaq_matrix &matrix, const sedaq_input &input) : m(matrix), x(input) {
        n_codes = m.n_groups * m.n_codebooks;
        columns = m.n_groups * m.group_size;
        while (half * half < m.n_entries) half *= 2;
        n_words = round_up(m.structure == SEDAQ_HIERARCHICAL ? 2 * half : m.structure == SEDAQ_MIRRORED ? m.n_entries / 2 : m.n_entries, WORDS);
        table_bytes = round_up(m.n_entries, WORDS) * ENTRY;
        pass = smaller(TABLES, TABLES_BYTES / table_bytes);
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

    // Of products of codewords with the largest group: standard deviations that are not clipped, as benchmarks/byte_tables.py found best.
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

    // Products of WORDS codewords from k on with one group of the tile.
    void products(int64_t book, int64_t k, const float *group, Sixteen (*values)[PARTS]) const {
        const float *words = books + book * m.group_size * n_words + k;
        Sixteen sums[WORDS][PARTS] = {};
        for (int64_t i = 0; i < m.group_size; i++, words += n_words, group += TOKENS) {
            Sixteen of_tokens[PARTS];
            for (int p = 0; p < PARTS; p++) load(of_tokens[p], group + 16 * p);
#pragma GCC unroll 16
            for (int w = 0; w < WORDS; w++)
#pragma GCC unroll 4
                for (int p = 0; p < PARTS; p++) sums[w][p] += words[w] * of_tokens[p];
        }
#pragma GCC unroll 16
        for (int w = 0; w < WORDS; w++)
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) values[w][p] = sums[w][p];
    }

    // The table of one codebook and one group; half of a mirrored one is the other with its sign changed.
    void fill(int64_t book, const float *group, char *table) const {
        const int64_t n = m.structure == SEDAQ_MIRRORED ? m.n_entries / 2 : m.n_entries;
        Sixteen values[WORDS][PARTS];
        for (int64_t k = 0; k < n; k += WORDS) {
            products(book, k, group, values);
#pragma GCC unroll 16
            for (int w = 0; w < WORDS; w++) Of::pack(values[w], table + (k + w) * ENTRY);
            for (int w = 0; w < WORDS && n < m.n_entries && k + w < n; w++) {
                for (int p = 0; p < PARTS; p++) values[w][p] = -values[w][p];
                Of::pack(values[w], table + (n + k + w) * ENTRY);
            }
        }
    }

    enum { LONGEST_HALF = 64 };

    void fill_hierarchical(int64_t book, const float *group, char *table) const {
        Sixteen values[WORDS][PARTS];
        typename Of::Half halves[2 * LONGEST_HALF + WORDS];
        for (int64_t k = 0; k < 2 * half; k += WORDS) {
            products(book, k, group, values);
            for (int w = 0; w < WORDS; w++) halves[k + w] = Of::half(values[w], k + w < half);
        }
        for (int64_t h = 0; h < half; h++)
            for (int64_t k = 0; k < half; k++) Of::join(halves[h], halves[half + k], table + (h * half + k) * ENTRY);
    }

    template <class Code>
    void add_rows(const Code *codes, int64_t n_rows, int64_t n, const char *tables, Sum *sums) const {
        for (int64_t r = 0; r < n_rows; r++, codes += n_codes) {
            for (int64_t c = 0; c < n; c += 64 / (int64_t)sizeof(Code)) __builtin_prefetch(codes + ROWS_AHEAD * n_codes + c);
            Of::add(codes, n, tables, table_bytes, sums + r * TOKENS);
        }
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
            for (int64_t i = 0; i < n; i++) {
                const float *group = tile + (c + i) / m.n_codebooks * m.group_size * TOKENS;
                if (m.structure == SEDAQ_HIERARCHICAL)
                    fill_hierarchical((c + i) % m.n_codebooks, group, tables + i * table_bytes);
                else
                    fill((c + i) % m.n_codebooks, group, tables + i * table_bytes);
            }
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

int lookup_16_bits(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return LookupProduct<2>(matrix, x).run(y, y_stride, threads);
}

int lookup_8_bits(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return LookupProduct<4>(matrix, x).run(y, y_stride, threads);
}

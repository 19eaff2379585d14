// The product by tables that fit a register: a byte shuffle looks as many rows up in 16 entries as a vector has bytes. A code of a
// hierarchical codebook of up to 256 codewords is two such lookups, a code of up to 16 codewords one; either way, two lookups make a pair,
// whose sum fits a byte. Tables by shuffles are known from T-MAC, bitnet.cpp and Vec-LUT, which take one product of a few weights each;
// here an entry is the product of a whole group of inputs with a codeword. Included after product.h.
//
// `Bytes` says what a vector of bytes is:
//   Vector, Words, Dwords            of bytes; of 16 and 32 bits
//   lookup(table, indices)           16 entries from memory at indices below 16
//   rows(at), low(a, b), high(a, b)  16 bytes from each of some addresses; bytes of a and b in turn, within lanes of 16 bytes

enum { PAIRS = 64, TILE_TOKENS = 64, CHUNK_ROWS = 512, GROUP = 4 };  // at once: pairs; tokens and rows of an item of work; tokens in registers
static const int64_t PAIR_BYTES = 32;             // of one token: two tables
static const int64_t TABLES_BYTES = 16 << 20;     // of tokens whose tables are held at once

// Tables of one token: products of groups of x with codewords in 16 bits, then the bytes of these.
struct TableMaker {
    const sedaq_matrix &m;
    bool split;                  // codes into two halves
    int64_t half, n_tables, n_pairs, of_group;  // entries of a table; tables of a token, padded to pairs; of a group
    int64_t steps, padded;       // pairs of columns of a group, and columns
    int shift = 16;              // of sums of products, to 16 bits
    float word_scale = 0, bound = 0;  // of codewords; of the greatest x · scales → sums
    int16_t *words = nullptr;    // (of_group, steps, 16 entries, 2 columns)

    TableMaker(const sedaq_matrix &matrix) : m(matrix), split(matrix.n_entries > 16), half(matrix.n_entries) {
        for (half = split ? 1 : m.n_entries; half * half < m.n_entries && split;) half *= 2;
        of_group = m.n_codebooks * (split ? 2 : 1);
        n_pairs = (m.n_groups * of_group + 1) / 2;
        n_tables = 2 * n_pairs;
        steps = (m.group_size + 1) / 2;
        padded = m.n_groups * 2 * steps;
    }

    int64_t word_numbers() const { return of_group * steps * 32; }

    // Entry k of a group's table, column i. Of a codeword the first half has the mean of all second ones, so that these are small.
    float word(int64_t table, int64_t k, int64_t i) const {
        const float *book = m.codebooks + table / (split ? 2 : 1) * m.n_entries * m.stride + i;
        if (k >= half) return 0;
        if (!split) return book[k * m.stride];
        float mean = 0;
        for (int64_t l = 0; l < half; l++) mean += (book[l * m.stride] - book[0]) / (float)half;
        return table % 2 == 0 ? book[k * half * m.stride] + mean : book[k * m.stride] - book[0] - mean;
    }

    void prepare(int16_t *out) {
        float greatest = 0, longest = 0;
        for (int64_t t = 0; t < of_group; t++)
            for (int64_t k = 0; k < half; k++) {
                float squares = 0;
                for (int64_t i = 0; i < m.group_size; i++) {
                    const float value = word(t, k, i);
                    squares += value * value;
                    greatest = greatest < value ? value : greatest < -value ? -value : greatest;
                }
                longest = longest < squares ? squares : longest;
            }
        bound = __builtin_sqrtf(longest * (float)m.group_size);  // of a sum, where no x is above 1
        word_scale = greatest > 1e-30f ? 16383 / greatest : 0;
        while (shift > 1 && greatest * (float)(1 << shift) > bound * 32000) shift--;
        words = out;
        for (int64_t t = 0; t < of_group; t++)
            for (int64_t p = 0; p < steps; p++)
                for (int64_t e = 0; e < 32; e++, out++) {
                    const int64_t k = e / 2 % 4 + e / 8 % 2 * 8 + e / 16 * 4, i = 2 * p + e % 2;  // entries as packing puts them in order
                    *out = i < m.group_size ? (int16_t)__builtin_rintf(word(t, k, i) * word_scale) : (int16_t)0;
                }
    }

    // x in 16 bits, so that no sum passes 16383 · 2^shift; every group is padded to pairs of columns. Returns what x was multiplied by.
    float convert(const float *row, int16_t *x) const {
        const float greatest = greatest_magnitude(row, m.n_groups * m.group_size);
        if (!(greatest < 1e38f)) return __builtin_nanf("");
        const float scale = greatest * bound < 1e-30f ? 0 : 16383.f * (float)(1 << shift) / (greatest * bound * word_scale);
        if (m.group_size % 2 == 0)
            convert(row, padded, scale, x);
        else
            for (int64_t j = 0; j < m.n_groups; j++, row += m.group_size, x += 2 * steps) convert(row, m.group_size, scale, x);
        return scale;
    }

    static void convert(const float *row, int64_t n, float scale, int16_t *x) {
        for (int64_t i = 0; i < n; i++) {
            const float moved = row[i] * scale + 12582912;  // 1.5 · 2²³: the lowest bits are those of the nearest integer
            uint32_t bits;
            __builtin_memcpy(&bits, &moved, 4);
            x[i] = (int16_t)bits;
        }
    }

    template <int N>
    void multiply(const int16_t *of_tables, const int16_t *x, int16_t *out) const {
        __m256i sums[N][2];
        for (int t = 0; t < N; t++) sums[t][0] = sums[t][1] = _mm256_set1_epi32(1 << (shift - 1));
        for (int64_t p = 0; p < steps; p++) {
            int32_t columns;
            load(columns, x + 2 * p);
            const __m256i both = _mm256_set1_epi32(columns);
            for (int t = 0; t < N; t++)
                for (int v = 0; v < 2; v++) {
                    const __m256i of_words = _mm256_loadu_si256((const __m256i *)(of_tables + (t * steps + p) * 32 + v * 16));
                    sums[t][v] = _mm256_add_epi32(sums[t][v], _mm256_madd_epi16(of_words, both));
                }
        }
        const __m128i by = _mm_cvtsi32_si128(shift);
        for (int t = 0; t < N; t++)
            _mm256_storeu_si256((__m256i *)(out + t * 16), _mm256_packs_epi32(_mm256_sra_epi32(sums[t][0], by), _mm256_sra_epi32(sums[t][1], by)));
    }

    // All tables of a token in 16 bits.
    void multiply_all(const int16_t *x, int16_t *out) const {
        for (int64_t j = 0; j < m.n_groups; j++, x += 2 * steps) {
            int64_t t = 0;
            for (; t + 4 <= of_group; t += 4, out += 64) multiply<4>(words + t * steps * 32, x, out);
            for (; t + 2 <= of_group; t += 2, out += 32) multiply<2>(words + t * steps * 32, x, out);
            for (; t < of_group; t++, out += 16) multiply<1>(words + t * steps * 32, x, out);
        }
    }

    static int greatest(__m256i x) {  // of non-negative words
        int16_t values[16], found = 0;
        store(values, x);
        for (int i = 0; i < 16; i++) found = found < values[i] ? values[i] : found;
        return found;
    }

    // Bytes from 16 bits, so that no pair's sum passes 255; those of tables are `next` bytes apart. Returns what they were multiplied by,
    // and how much all of them add too much.
    float pack(const int16_t *entries, uint8_t *out, int64_t next, int32_t *offset) const {
        __m256i first = _mm256_setzero_si256(), second = first;
        for (int64_t p = 0; p < n_pairs; p++) {
            first = _mm256_max_epi16(first, _mm256_abs_epi16(_mm256_loadu_si256((const __m256i *)(entries + p * 32))));
            second = _mm256_max_epi16(second, _mm256_abs_epi16(_mm256_loadu_si256((const __m256i *)(entries + p * 32 + 16))));
        }
        const int most_first = greatest(first), most_second = greatest(second), most = most_first + most_second;
        const int multiplier = most <= 126 ? 32767 : 32768 * 126 / most;
        const int middle_first = (most_first * multiplier + 0x4000) >> 15, middle_second = (most_second * multiplier + 0x4000) >> 15;
        const __m256i by = _mm256_set1_epi16((int16_t)multiplier);
        const __m256i middle = _mm256_setr_m128i(_mm_set1_epi8((char)middle_first), _mm_set1_epi8((char)middle_second));
        for (int64_t p = 0; p < n_pairs; p++, out += next) {
            const __m256i a = _mm256_mulhrs_epi16(_mm256_loadu_si256((const __m256i *)(entries + p * 32)), by);
            const __m256i b = _mm256_mulhrs_epi16(_mm256_loadu_si256((const __m256i *)(entries + p * 32 + 16)), by);
            const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
            _mm256_storeu_si256((__m256i *)out, _mm256_add_epi8(bytes, middle));
        }
        *offset = (int32_t)n_pairs * (middle_first + middle_second);
        return (float)multiplier / 32768;
    }
};

template <class Bytes>
struct ShuffleProduct {
    typedef typename Bytes::Vector Vector;
    typedef typename Bytes::Words Words;
    typedef typename Bytes::Dwords Dwords;
    enum { LANES = sizeof(Vector), QUARTER = LANES / 4 };

    const sedaq_matrix &m;
    const sedaq_input &x;
    TableMaker maker;
    int64_t n_codes, n_tokens, group, tile, rows;  // codes of a row; tokens in registers; tokens and rows of an item of work
    int high_bits = 4;           // where a code's first half begins
    Vector low_mask;             // of its second half
    uint8_t *tables = nullptr;   // (groups of tokens, pairs, group, 32)
    float *units = nullptr;
    int32_t *offsets = nullptr;

    ShuffleProduct(const sedaq_matrix &matrix, const sedaq_input &input) : m(matrix), x(input), maker(matrix), n_tokens(tokens_of(input)) {
        n_codes = m.n_groups * m.n_codebooks;
        high_bits = maker.half == 8 ? 3 : 4;
        low_mask = Vector{} + (uint8_t)(maker.half - 1);
        group = n_tokens < 3 ? n_tokens : (int64_t)GROUP;
        tile = smaller(round_up(n_tokens, group ? group : 1), TILE_TOKENS);
    }

    // Rows that are worked on at once: few where there is little work for all threads.
    int64_t chunk_rows(int64_t tokens, int threads) const {
        const int64_t most = tokens <= 8 ? 2 * LANES : (int64_t)CHUNK_ROWS, tiles = (tokens + tile - 1) / tile;
        int64_t chunks = (m.n_out + most - 1) / most;
        while (tiles * chunks < 4 * threads && tiles * chunks % threads) chunks++;
        return round_up((m.n_out + chunks - 1) / chunks, LANES);
    }

    int run(void *y, int64_t y_stride, int threads) {
        if (n_tokens == 0 || m.n_out == 0) return 0;
        const int64_t of_token = maker.n_pairs * PAIR_BYTES, batch = smaller(round_up(n_tokens, group), round_up(TABLES_BYTES / of_token + 1, tile));
        rows = chunk_rows(smaller(batch, n_tokens), threads);
        if (!of_call.reserve(Scratch::bytes_of<int16_t>(maker.word_numbers()) + Scratch::bytes_of<uint8_t>(batch * of_token) +
                             Scratch::bytes_of<float>(batch) + Scratch::bytes_of<int32_t>(batch)))
            return 2;
        maker.prepare(of_call.take<int16_t>(maker.word_numbers()));
        tables = of_call.take<uint8_t>(batch * of_token);
        units = of_call.take<float>(batch);
        offsets = of_call.take<int32_t>(batch);
        int failed = 0;
        for (int64_t first = 0; first < n_tokens && !failed; first += batch) {
#pragma omp parallel num_threads(threads)
            if (!work(first, smaller(batch, n_tokens - first), y, y_stride)) {
#pragma omp atomic write
                failed = 2;
            }
        }
        return failed;
    }

    // What each thread does: its share of the tables, then of tiles of tokens by chunks of rows. False where it got no memory.
    bool work(int64_t first, int64_t n, void *y, int64_t y_stride) const {
        const int64_t columns = m.n_groups * m.group_size, index_bytes = rows * 2 * PAIRS;
        const bool ready = of_thread.reserve(
            Scratch::bytes_of<float>(columns) + Scratch::bytes_of<int16_t>(maker.padded) + Scratch::bytes_of<int16_t>(maker.n_tables * 16) +
            Scratch::bytes_of<uint8_t>(index_bytes) + Scratch::bytes_of<int32_t>(tile * rows) + Scratch::bytes_of<float>(rows));
        float *row = of_thread.take<float>(columns);
        int16_t *of_row = of_thread.take<int16_t>(maker.padded), *entries = of_thread.take<int16_t>(maker.n_tables * 16);
        uint8_t *indices = of_thread.take<uint8_t>(index_bytes);
        int32_t *sums = of_thread.take<int32_t>(tile * rows);
        float *bias = of_thread.take<float>(rows);
        if (ready) {
            __builtin_memset(row, 0, columns * sizeof *row);
            __builtin_memset(of_row, 0, maker.padded * sizeof *of_row);
            __builtin_memset(entries, 0, maker.n_tables * 16 * sizeof *entries);
            __builtin_memset(bias, 0, rows * sizeof *bias);
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < n; t++)
            if (ready) make_tables(first, t, row, of_row, entries);
        const int64_t chunks = (m.n_out + rows - 1) / rows, tiles = (n + tile - 1) / tile;
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < tiles * chunks; item++) {
            if (!ready) continue;
            const int64_t t = item / chunks * tile, start = item % chunks * rows, n_rows = smaller(rows, m.n_out - start);
            __builtin_memset(sums, 0, tile * rows * sizeof *sums);
            sum_rows(t, smaller(tile, n - t), start, n_rows, indices, sums);
            finish(first, t, smaller(tile, n - t), start, n_rows, sums, bias, y, y_stride);
        }
        return ready;
    }

    void make_tables(int64_t first, int64_t t, float *row, int16_t *of_row, int16_t *entries) const {
        const float *values = ready_token<float>(x, first + t, m.n_groups * m.group_size);
        if (!values) gather_token(x, first + t, row);
        const float scale = maker.convert(values ? values : row, of_row) * maker.word_scale / (float)(1 << maker.shift);
        maker.multiply_all(of_row, entries);
        const float packed = maker.pack(entries, tables + (t / group * maker.n_pairs * group + t % group) * PAIR_BYTES, group * PAIR_BYTES, offsets + t);
        units[t] = scale == 0 ? 0 : 1 / (scale * packed);
    }

    // Row of a chunk's block of LANES whose bytes are the b-th of vectors: so that sums come in order (`flush`).
    static int64_t row_of(int64_t b) { return b % 4 * QUARTER + b / 4; }

    // 16 codes of LANES rows, from (row, code) to (code, row). Four times bytes of vectors half of all apart, in turn, transpose.
    static void transpose(const uint8_t *codes, int64_t stride, int64_t n_rows, Vector *out) {
        Vector other[16];
        for (int i = 0; i < 16; i++) {
            const uint8_t *at[LANES / 16];  // what lanes beyond the last row hold is not looked at
            for (int l = 0; l < LANES / 16; l++) at[l] = codes + smaller(row_of(16 * l + i), n_rows - 1) * stride;
            other[i] = Bytes::rows(at);
        }
        for (int round = 0; round < 4; round++) {
            Vector *from = round % 2 ? out : other, *to = round % 2 ? other : out;
            for (int i = 0; i < 8; i++) {
                to[2 * i] = Bytes::low(from[i], from[i + 8]);
                to[2 * i + 1] = Bytes::high(from[i], from[i + 8]);
            }
        }
        for (int i = 0; i < 16; i++) out[i] = other[i];
    }

    // Indices into tables of n pairs from `pair` on, LANES rows from `row` on: (pair, 2, LANES).
    void index(int64_t row, int64_t pair, int64_t n, uint8_t *out) const {
        const int64_t of_pair = maker.split ? 1 : 2, stop = smaller((pair + n) * of_pair, n_codes), n_rows = smaller(LANES, m.n_out - row);
        const uint8_t *codes = (const uint8_t *)m.codes + row * n_codes, *end = (const uint8_t *)m.codes + m.n_out * n_codes;
        for (int64_t c = pair * of_pair; c < stop; c += 16, out += 16 * LANES * 2 / of_pair) {
            alignas(64) uint8_t tail[LANES * 16] = {};
            Vector found[16];
            const bool whole = codes + (n_rows - 1) * n_codes + c + 16 <= end;
            for (int64_t r = 0; r < n_rows && !whole; r++) __builtin_memcpy(tail + r * 16, codes + r * n_codes + c, smaller(16, stop - c));
            transpose(whole ? codes + c : tail, whole ? n_codes : 16, n_rows, found);
            for (int i = 0; i < 16; i++) {
                if (maker.split) {
                    store(out + 2 * i * LANES, (Vector)((Words)found[i] >> high_bits) & low_mask);
                    store(out + (2 * i + 1) * LANES, found[i] & low_mask);
                } else {
                    store(out + i * LANES, found[i]);
                }
            }
        }
    }

    // Adds to sums[token][row], `next` apart, the entries of n pairs, at most 255: 8 bits of each pair, 16 of all of them. Sums of words wrap
    // around, but with the sums of their high bytes those of their low bytes are known.
    template <int TOKENS>
    static void add(const uint8_t *indices, const uint8_t *tables, int64_t n, int32_t *sums, int64_t next) {
        Words all[TOKENS] = {}, high[TOKENS] = {};
        for (int64_t p = 0; p < n; p++, indices += 2 * LANES, tables += TOKENS * PAIR_BYTES) {
            Vector first, second;
            load(first, indices);
            load(second, indices + LANES);
#pragma GCC unroll 4
            for (int t = 0; t < TOKENS; t++) {
                const Words sum = (Words)(Bytes::lookup(tables + t * PAIR_BYTES, first) + Bytes::lookup(tables + t * PAIR_BYTES + 16, second));
                all[t] += sum;
                high[t] += sum >> 8;
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; t++, sums += next) {
            const Words odd = high[t], even = all[t] - (odd << 8);
            const Dwords parts[4] = {(Dwords)even & 0xffff, (Dwords)odd & 0xffff, (Dwords)even >> 16, (Dwords)odd >> 16};
            for (int q = 0; q < 4; q++) {
                Dwords sum;
                load(sum, sums + q * QUARTER);
                store(sums + q * QUARTER, sum + parts[q]);
            }
        }
    }

    void add(int64_t tokens, const uint8_t *indices, const uint8_t *of_tokens, int64_t n, int32_t *sums) const {
        if (tokens == 1)
            add<1>(indices, of_tokens, n, sums, rows);
        else if (tokens == 2)
            add<2>(indices, of_tokens, n, sums, rows);
        else
            add<GROUP>(indices, of_tokens, n, sums, rows);
    }

    // A tile of tokens from t on by some rows. Indices of a block of pairs serve all tokens; tables of two groups stay in the first-level cache.
    void sum_rows(int64_t t, int64_t n_tokens, int64_t start, int64_t n_rows, uint8_t *indices, int32_t *sums) const {
        for (int64_t p = 0; p < maker.n_pairs; p += PAIRS) {
            const int64_t n = smaller(PAIRS, maker.n_pairs - p);
            for (int64_t r = 0; r < n_rows; r += LANES) index(start + r, p, n, indices + r * 2 * PAIRS);
            for (int64_t first = 0; first < n_tokens; first += 2 * group)
                for (int64_t r = 0; r < n_rows; r += LANES)
                    for (int64_t u = first; u < smaller(first + 2 * group, n_tokens); u += group)
                        add(group, indices + r * 2 * PAIRS, tables + ((t + u) * maker.n_pairs + p * group) * PAIR_BYTES, n, sums + u * rows + r);
        }
    }

    void finish(int64_t first, int64_t t, int64_t n_tokens, int64_t start, int64_t n_rows, const int32_t *sums, float *bias, void *y, int64_t y_stride) const {
        if (m.bias) __builtin_memcpy(bias, m.bias + start, n_rows * sizeof *bias);
        for (int64_t u = 0; u < n_tokens; u++, sums += rows) {
            const float unit = units[t + u], *of_rows = m.scales + start;
            const int32_t offset = offsets[t + u];
            const int64_t at = (first + t + u) * y_stride + start;
            if (x.is_bf16)
                for (int64_t r = 0; r < n_rows; r++) ((uint16_t *)y)[at + r] = narrowed((float)(sums[r] - offset) * (unit * of_rows[r]) + bias[r]);
            else
                for (int64_t r = 0; r < n_rows; r++) ((float *)y)[at + r] = (float)(sums[r] - offset) * (unit * of_rows[r]) + bias[r];
        }
    }
};

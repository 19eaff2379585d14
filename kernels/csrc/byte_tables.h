// Tables of bytes that fit a register: of every token, products of its groups of inputs with up to 16 codewords, or with the 16 halves that
// a hierarchical codebook of 256 is made of. Two tables make a pair, whose sum fits a byte. Included after product.h.

enum { PAIRS = 48 };                   // that lie together
static const int64_t PAIR_BYTES = 32;  // of one token

struct TableBuilder {
    const sedaq_matrix &m;
    bool split;                           // whether a code is two halves
    int64_t half, of_group;               // entries of a table; tables of a group of inputs
    int64_t n_pairs, n_tables;            // of a token; tables are padded to two pairs
    int64_t steps, padded;                // pairs of columns of a group; columns of all groups
    int shift = 16;                       // from sums of products to 16 bits
    float word_scale = 0, bound = 0;      // of codewords in 16 bits; of sums, where no input is above 1
    int16_t *words = nullptr;             // (steps, of_group, 16 entries, 2 columns)

    TableBuilder(const sedaq_matrix &matrix) : m(matrix), split(matrix.n_entries > 16) {
        half = !split ? m.n_entries : m.n_entries == 64 ? 8 : 16;
        of_group = m.n_codebooks * (split ? 2 : 1);
        n_pairs = (m.n_groups * of_group + 1) / 2;
        n_tables = round_up(2 * n_pairs, 4);
        steps = (m.group_size + 1) / 2;
        padded = m.n_groups * 2 * steps;
    }

    int64_t word_numbers() const { return of_group * steps * 32; }

    // Column i of a group's table: up to 16 numbers. The mean of a codeword's second halves is in the first ones, so that tables are small.
    void column(int64_t table, int64_t i, float *values) const {
        const float *book = m.codebooks + table / (split ? 2 : 1) * m.n_entries * m.stride + i;
        float mean = 0;
        for (int64_t k = 0; k < half && split; k++) mean += book[k * m.stride] / (float)half;
        for (int64_t k = 0; k < half; k++)
            values[k] = !split ? book[k * m.stride] : table % 2 == 0 ? book[k * half * m.stride] - book[0] + mean : book[k * m.stride] - mean;
    }

    void prepare(int16_t *out) {
        float greatest = 0, longest = 0, values[16] = {};
        for (int64_t t = 0; t < of_group; t++) {
            float squares[16] = {};
            for (int64_t i = 0; i < m.group_size; i++) {
                column(t, i, values);
                for (int64_t k = 0; k < 16; k++) squares[k] += values[k] * values[k];
                const float found = max_magnitude(values, 16);
                greatest = greatest < found ? found : greatest;
            }
            for (int64_t k = 0; k < 16; k++) longest = longest < squares[k] ? squares[k] : longest;
        }
        bound = __builtin_sqrtf(longest * (float)m.group_size);
        word_scale = greatest > 1e-30f ? 16383 / greatest : 0;
        while (shift > 1 && greatest * (float)(1 << shift) > bound * 32000) shift--;
        words = out;
        for (int64_t i = 0; i < 2 * steps; i++)
            for (int64_t t = 0; t < of_group; t++) {
                int16_t *to = out + (i / 2 * of_group + t) * 32 + i % 2;
                for (int64_t k = 0; k < 16; k++) values[k] = 0;
                if (i < m.group_size) column(t, i, values);
                // Entries 0 … 3, 8 … 11, 4 … 7, 12 … 15: packing puts them in order.
                for (int64_t k = 0; k < 16; k++) to[2 * ((k & 3) | (k & 4) << 1 | (k & 8) >> 1)] = (int16_t)__builtin_rintf(values[k] * word_scale);
            }
    }

    // x in 16 bits, so that no sum passes 16383 · 2^shift; every group is padded to pairs of columns. Returns what x was multiplied by.
    float convert(const float *row, int16_t *x) const {
        const float greatest = max_magnitude(row, m.n_groups * m.group_size);
        if (!(greatest <= 3.402823466e38f)) return __builtin_nanf("");  // the greatest number
        const float scale = greatest * bound < 1e-30f ? 0 : 16383.f * (float)(1 << shift) / (bound * word_scale) / greatest;
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

    // Products of one group with N tables of words. STEPS is `steps`, or 0 for any number.
    template <int N, int STEPS>
    void multiply(const int16_t *of_tables, const int16_t *x, int16_t *out) const {
        __m256i sums[N][2];
        for (int t = 0; t < N; t++) sums[t][0] = sums[t][1] = _mm256_set1_epi32(1 << (shift - 1));
#pragma GCC unroll 4
        for (int64_t p = 0; p < (STEPS ? STEPS : steps); p++, of_tables += of_group * 32) {
            int32_t columns;
            load(columns, x + 2 * p);
            const __m256i both = _mm256_set1_epi32(columns);
            for (int t = 0; t < N; t++)
                for (int v = 0; v < 2; v++) {
                    const __m256i of_words = _mm256_loadu_si256((const __m256i *)(of_tables + t * 32 + v * 16));
                    sums[t][v] = _mm256_add_epi32(sums[t][v], _mm256_madd_epi16(of_words, both));
                }
        }
        const __m128i by = _mm_cvtsi32_si128(shift);
        for (int t = 0; t < N; t++)
            _mm256_storeu_si256((__m256i *)(out + t * 16), _mm256_packs_epi32(_mm256_sra_epi32(sums[t][0], by), _mm256_sra_epi32(sums[t][1], by)));
    }

    template <int N>
    void multiply(const int16_t *of_tables, const int16_t *x, int16_t *out) const {
        if (steps == 4)
            multiply<N, 4>(of_tables, x, out);
        else
            multiply<N, 0>(of_tables, x, out);
    }

    // All tables of a token in 16 bits.
    void multiply_all(const int16_t *x, int16_t *out) const {
        for (int64_t j = 0; j < m.n_groups; j++, x += 2 * steps) {
            int64_t t = 0;
            for (; t + 4 <= of_group; t += 4, out += 64) multiply<4>(words + t * 32, x, out);
            for (; t + 2 <= of_group; t += 2, out += 32) multiply<2>(words + t * 32, x, out);
            for (; t < of_group; t++, out += 16) multiply<1>(words + t * 32, x, out);
        }
    }

    // Of four tables, the least or the greatest entry in the low words of dwords.
    template <__m128i (*Of)(__m128i, __m128i)>
    static inline __m128i extremes(const int16_t *tables) {
        const __m128i *of = (const __m128i *)tables;
        __m128i x[4];
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) x[t] = Of(_mm_loadu_si128(of + 2 * t), _mm_loadu_si128(of + 2 * t + 1));
        const __m128 first = (__m128)Of(_mm_unpacklo_epi64(x[0], x[1]), _mm_unpackhi_epi64(x[0], x[1]));
        const __m128 second = (__m128)Of(_mm_unpacklo_epi64(x[2], x[3]), _mm_unpackhi_epi64(x[2], x[3]));
        const __m128i both = Of((__m128i)_mm_shuffle_ps(first, second, 0x88), (__m128i)_mm_shuffle_ps(first, second, 0xdd));
        return Of(both, _mm_srli_epi32(both, 16));
    }

    static inline __m128i min_of(__m128i a, __m128i b) { return _mm_min_epi16(a, b); }
    static inline __m128i max_of(__m128i a, __m128i b) { return _mm_max_epi16(a, b); }

    // Bytes from 16 bits: every table above its least entry, which uses their range better than zero in the middle does, and no pair's sum
    // above 255. Entries are rounded before they are moved up: what is small beside the unit then becomes zero, whatever its sign.
    // Blocks of PAIRS are `next` bytes apart. Returns what entries were multiplied by, and how much all tables add too much.
    float pack(const int16_t *entries, int32_t *least, uint8_t *out, int64_t next, int32_t *offset) const {
        __m128i widest = _mm_setzero_si128(), sum = widest;
        const __m128i words = _mm_set1_epi32(0xffff);
        for (int64_t t = 0; t < n_tables; t += 4) {
            const __m128i low = extremes<min_of>(entries + t * 16), high = extremes<max_of>(entries + t * 16);
            const __m128i range = _mm_and_si128(_mm_sub_epi16(high, low), words);
            widest = _mm_max_epi32(widest, _mm_add_epi32(range, _mm_shuffle_epi32(range, 0xb1)));
            _mm_storeu_si128((__m128i *)(least + t), _mm_or_si128(_mm_slli_epi32(low, 16), _mm_and_si128(low, words)));
        }
        int32_t ranges[4], sums[4];
        store(ranges, widest);
        const int32_t most = ranges[0] > ranges[2] ? ranges[0] : ranges[2], multiplier = most <= 253 ? 32767 : 32768 * 253 / most;
        for (int64_t t = 0; t < n_tables; t += 4) {
            const __m128i low = _mm_mulhrs_epi16(_mm_loadu_si128((const __m128i *)(least + t)), _mm_set1_epi16((int16_t)multiplier));
            sum = _mm_add_epi32(sum, _mm_srai_epi32(low, 16));
            _mm_storeu_si128((__m128i *)(least + t), low);
        }
        store(sums, sum);
        *offset = -(sums[0] + sums[1] + sums[2] + sums[3]);
        const __m256i by = _mm256_set1_epi16((int16_t)multiplier);
        for (int64_t start = 0; start < n_pairs; start += PAIRS, out += next) {
            uint8_t *to = out;
            for (int64_t p = start; p < smaller(start + PAIRS, n_pairs); p++, entries += 32, to += PAIR_BYTES) {
                const __m256i a = _mm256_mulhrs_epi16(_mm256_loadu_si256((const __m256i *)entries), by);
                const __m256i b = _mm256_mulhrs_epi16(_mm256_loadu_si256((const __m256i *)(entries + 16)), by);
                const __m256i first = _mm256_sub_epi16(a, _mm256_set1_epi32(least[2 * p])), second = _mm256_sub_epi16(b, _mm256_set1_epi32(least[2 * p + 1]));
                _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0xd8));
            }
        }
        return (float)multiplier / 32768;
    }
};

// Products of 8-bit integers in vectors of 32 bytes. Included after product.h.
//
// `Dot` says how: LIMIT and ROW_LIMIT, the greatest magnitudes of activations and of weights, and
//   add(sum, a, b, c, d)   sums of 8 rows, and products of a token's columns, unsigned, with theirs: a · c + b · d, each four columns

template <class Dot>
struct Int8 {
    enum { PER_DWORD = 4, PARTS = 1, EIGHT_BIT = 1, TAKES_BF16 = 0, LIMIT = Dot::LIMIT, ROW_LIMIT = Dot::ROW_LIMIT, OFFSET = LIMIT + 1 };
    typedef int32_t Sum;
    typedef uint16_t Weight;

    static void begin() {}
    static void end() {}

    static inline __m256i integers(const float *row, __m256 scale) {  // 16 columns, of lanes in turn
        const __m256 low = _mm256_loadu_ps(row), high = _mm256_loadu_ps(row + 8);
        return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(low, scale)), _mm256_cvtps_epi32(_mm256_mul_ps(high, scale)));
    }

    // One operand of a multiplication is unsigned: tokens are moved up, which adds OFFSET times a row's sum to every product.
    static void convert_token(const float *row, float scale, uint32_t *const *out) {
        const __m256 by = _mm256_set1_ps(scale);
        const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        for (int64_t i = 0; i < 64; i += 32) {
            const __m256i bytes = _mm256_packs_epi16(integers(row + i, by), integers(row + i + 16, by));
            const __m256i moved = _mm256_add_epi8(_mm256_permutevar8x32_epi32(bytes, in_order), _mm256_set1_epi8((char)OFFSET));
            _mm256_storeu_si256((__m256i *)(out[0] + i / 4), moved);
        }
    }

    // 8 × 8 dwords.
    static inline void transpose(__m256i *x) {
        __m256i y[8];
        for (int i = 0; i < 8; i += 2) {
            y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
        }
        for (int i = 0; i < 8; i += 4)
            for (int j = 0; j < 2; j++) {
                x[i + 2 * j] = _mm256_unpacklo_epi64(y[i + j], y[i + j + 2]);
                x[i + 2 * j + 1] = _mm256_unpackhi_epi64(y[i + j], y[i + j + 2]);
            }
        for (int i = 0; i < 4; i++) {
            y[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
            y[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
        }
        for (int i = 0; i < 8; i++) x[i] = y[i];
    }

    static void convert_rows(const uint16_t *values, int64_t stride, const int16_t *multipliers, uint32_t *const *out, int32_t *sums) {
        const __m256i ones = _mm256_set1_epi8(1), word_ones = _mm256_set1_epi16(1);
        for (int64_t r = 0; r < ROWS; r += 8) {
            __m256i sum = _mm256_setzero_si256();
            for (int64_t d = 0; d < 16; d += 8) {
                __m256i x[8];
                for (int64_t i = 0; i < 8; i++) {
                    const uint16_t *row = values + (r + i) * stride + 4 * d;
                    const __m256i by = _mm256_set1_epi16(multipliers[r + i]);
                    const __m256i low = _mm256_mulhrs_epi16(_mm256_loadu_si256((const __m256i *)row), by);
                    const __m256i high = _mm256_mulhrs_epi16(_mm256_loadu_si256((const __m256i *)(row + 16)), by);
                    x[i] = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8);
                }
                transpose(x);
                for (int64_t i = 0; i < 8; i++) {
                    _mm256_storeu_si256((__m256i *)(out[0] + (d + i) * 16 + r), x[i]);
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, x[i]), word_ones));
                }
            }
            __m256i known;
            load(known, sums + r);
            store(sums + r, _mm256_add_epi32(known, _mm256_mullo_epi32(sum, _mm256_set1_epi32(OFFSET))));
        }
    }

    static inline __m256i at(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }

    // TOKENS tokens by 16 rows, along `steps` tiles; unrolled, and a function of its own, for sums to stay in registers.
    template <int TOKENS>
    [[gnu::noinline]] static void multiply_block(const uint32_t *a, const uint32_t *b, int64_t steps, int32_t *c, bool more) {
        __m256i sums[TOKENS][2];
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 2
            for (int n = 0; n < 2; n++) sums[t][n] = more ? at(c + t * PAIR + 8 * n) : _mm256_setzero_si256();
        for (int64_t s = 0; s < steps; s++, a += TILE, b += TILE)
            for (int64_t d = 0; d < 16; d += 2) {
                const uint32_t *rows = b + d * 16;
#pragma GCC unroll 8
                for (int t = 0; t < TOKENS; t++) {
                    const __m256i first = _mm256_set1_epi32((int)a[t * 16 + d]), second = _mm256_set1_epi32((int)a[t * 16 + d + 1]);
#pragma GCC unroll 2
                    for (int n = 0; n < 2; n++) sums[t][n] = Dot::add(sums[t][n], first, second, at(rows + 8 * n), at(rows + 16 + 8 * n));
                }
            }
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 2
            for (int n = 0; n < 2; n++) _mm256_storeu_si256((__m256i *)(c + t * PAIR + 8 * n), sums[t][n]);
    }

    static void multiply(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, int32_t *c, bool more) {
        for (int64_t n = 0; n < n_b; n++)
            for (int64_t t = 0; t < n_a * 16; t += 4)
                multiply_block<4>(a.tiles + t / 16 * a.next + t % 16 * 16, b.tiles + n * b.next, steps, c + t * PAIR + n * ROWS, more);
    }
};

// float32 to tiles of bfloat16 and of 8-bit integers, with AVX-512.

static void transpose(__m512i *x) {  // 16 × 16 dwords
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {  // lanes of 128 bits
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
    }
}

[[maybe_unused]] static void store_transposed(__m512i *rows, uint32_t *out) {
    transpose(rows);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * 16, rows[i]);
}

#ifdef WITH_BFLOAT16
static inline __m512i bfloat16s(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

static inline __m512 rest(__m512 x) {  // what bfloat16 leaves of x
    const __m512i narrow = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
    return _mm512_sub_ps(x, (__m512)_mm512_slli_epi32(narrow, 16));
}

// bfloat16, or with N_PARTS = 2 that and what it leaves.
template <int N_PARTS>
struct Bfloat16 {
    enum { PER_DWORD = 2, PARTS = N_PARTS, EIGHT_BIT = 0, TAKES_BF16 = N_PARTS == 1 };
    typedef float Sum, Weight;

    static inline void split(const float *row, __m512i *parts) {
        const __m512 low = _mm512_loadu_ps(row), high = _mm512_loadu_ps(row + 16);
        parts[0] = bfloat16s(low, high);
        if (PARTS == 2) parts[PARTS - 1] = bfloat16s(rest(low), rest(high));
    }

    static void convert_token(const float *row, float, uint32_t *const *out) {
        __m512i parts[PARTS];
        split(row, parts);
        for (int p = 0; p < PARTS; p++) _mm512_storeu_si512(out[p], parts[p]);
    }

    static void convert_rows(const float *values, int64_t stride, const int16_t *, uint32_t *const *out, int32_t *) {
        __m512i rows[PARTS][ROWS];
        for (int r = 0; r < ROWS; r++) {
            __m512i parts[PARTS];
            split(values + r * stride, parts);
            for (int p = 0; p < PARTS; p++) rows[p][r] = parts[p];
        }
        for (int p = 0; p < PARTS; p++) store_transposed(rows[p], out[p]);
    }
};
#endif

// 64 columns to signed bytes.
static inline __m512i bytes(const float *row, float scale) {
    __m512i result = _mm512_setzero_si512();
    const __m512 by = _mm512_set1_ps(scale);
    result = _mm512_inserti32x4(result, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row), by))), 0);
    result = _mm512_inserti32x4(result, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + 16), by))), 1);
    result = _mm512_inserti32x4(result, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + 32), by))), 2);
    return _mm512_inserti32x4(result, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + 48), by))), 3);
}

// 64 columns of 16 bits to signed bytes: x · multiplier / 2¹⁵.
static inline __m512i bytes(const uint16_t *row, int16_t multiplier) {
    const __m512i by = _mm512_set1_epi16(multiplier);
    const __m512i low = _mm512_mulhrs_epi16(_mm512_loadu_si512(row), by), high = _mm512_mulhrs_epi16(_mm512_loadu_si512(row + 32), by);
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packs_epi16(low, high));
}

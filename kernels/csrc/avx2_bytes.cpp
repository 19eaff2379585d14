// AVX2: 8 bits.
#include <stdlib.h>

#include "sedaq.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#include <immintrin.h>

namespace avx2 {
#include "decode.h"
#include "gather.h"
#include "product.h"
#include "int8.h"
#include "byte_tables.h"
#include "shuffle.h"

struct Dot7 {
    enum { LIMIT = 63, ROW_LIMIT = 63 };

    static inline void add(__m256i &sum, const uint32_t *a, const __m256i *b) {
        const __m256i first = _mm256_maddubs_epi16(_mm256_set1_epi32((int)a[0]), b[0]);
        const __m256i second = _mm256_maddubs_epi16(_mm256_set1_epi32((int)a[1]), b[1]);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16(first, second), _mm256_set1_epi16(1)));
    }
};

struct Dot8 {
    enum { LIMIT = 127, ROW_LIMIT = 63 };

    static inline void add(__m256i &sum, const uint32_t *a, const __m256i *b) {
        const __m256i ones = _mm256_set1_epi16(1);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi32((int)a[0]), b[0]), ones));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi32((int)a[1]), b[1]), ones));
    }
};

int product_int8(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return getenv("DOT8") ? Product<Int8<Dot8>>(matrix, x).run(y, y_stride, threads) : Product<Int8<Dot7>>(matrix, x).run(y, y_stride, threads);
}

struct Bytes32 {
    typedef uint8_t Vector __attribute__((vector_size(32)));
    typedef uint16_t Words __attribute__((vector_size(32)));
    typedef uint32_t Dwords __attribute__((vector_size(32)));

    static inline Vector table(const uint8_t *at) { return (Vector)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)at)); }
    static inline Vector lookup(Vector table, Vector indices) { return (Vector)_mm256_shuffle_epi8((__m256i)table, (__m256i)indices); }

    static inline Vector rows(const uint8_t *at, int64_t stride) {
        return (Vector)_mm256_loadu2_m128i((const __m128i *)(at + stride), (const __m128i *)at);
    }

    static inline Vector low(Vector a, Vector b) { return (Vector)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b); }
    static inline Vector high(Vector a, Vector b) { return (Vector)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b); }
};

int shuffle_8_bits(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    const bool fits = matrix.n_entries <= 16 || (matrix.structure == SEDAQ_HIERARCHICAL && matrix.n_entries <= 256);
    return fits && matrix.code_bytes == 1 ? ShuffleProduct<Bytes32>(matrix, x).run(y, y_stride, threads) : 1;
}
}  // namespace avx2
#endif

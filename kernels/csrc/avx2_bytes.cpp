// AVX2: 8 bits by multiplication and by byte shuffles.
#include <stdlib.h>

#include "sedaq.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#include <immintrin.h>

namespace avx2 {
#define REGISTER 32
#include "wide.h"
#include "decode.h"
#include "gather.h"
#include "scratch.h"
#include "product.h"
#include "int8.h"
#include "byte_tables.h"
#include "shuffle.h"

// 7 bits each: then two sums of two products fit 16 bits together, and a third of the instructions is saved against 8 bits.
struct SevenBitDot {
    enum { LIMIT = 63, ROW_LIMIT = 63 };

    static inline __m256i add(__m256i sum, __m256i a, __m256i b, __m256i c, __m256i d) {
        const __m256i words = _mm256_add_epi16(_mm256_maddubs_epi16(a, c), _mm256_maddubs_epi16(b, d));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
    }
};

int product_int8(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return Product<Int8<SevenBitDot>>(matrix, x).run(y, y_stride, threads);
}

struct Bytes32 {
    enum { BLOCKS = 5 };
    typedef uint8_t Vector __attribute__((vector_size(32)));
    typedef uint16_t Words __attribute__((vector_size(32)));
    typedef uint32_t Dwords __attribute__((vector_size(32)));

    static inline Vector table(const uint8_t *at) { return (Vector)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)at)); }
    static inline Vector lookup(Vector table, Vector indices) { return (Vector)_mm256_shuffle_epi8((__m256i)table, (__m256i)indices); }

    static inline Words high_bytes(Words words) { return (Words)_mm256_maddubs_epi16((__m256i)words, _mm256_set1_epi16(0x100)); }

    static inline Vector rows(const uint8_t *at, int64_t stride) {
        return (Vector)_mm256_loadu2_m128i((const __m128i *)(at + stride), (const __m128i *)at);
    }

    static inline Vector low(Vector a, Vector b) { return (Vector)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b); }
    static inline Vector high(Vector a, Vector b) { return (Vector)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b); }
};

int shuffle_8_bits(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return ShuffleProduct<Bytes32>::serves(matrix) ? ShuffleProduct<Bytes32>(matrix, x).run(y, y_stride, threads) : 1;
}
}  // namespace avx2
#endif

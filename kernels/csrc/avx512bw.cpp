// AVX-512: 8 bits by byte shuffles.
#include <stdlib.h>

#include "sedaq.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include <immintrin.h>

namespace avx512bw {
#define REGISTER 64
#include "wide.h"
#include "decode.h"
#include "gather.h"
#include "scratch.h"
#include "product.h"
#include "byte_tables.h"
#include "shuffle.h"

struct Bytes64 {
    enum { BLOCKS = 3 };
    typedef uint8_t Vector __attribute__((vector_size(64)));
    typedef uint16_t Words __attribute__((vector_size(64)));
    typedef uint32_t Dwords __attribute__((vector_size(64)));

    static inline Vector table(const uint8_t *at) { return (Vector)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)at)); }
    static inline Vector lookup(Vector table, Vector indices) { return (Vector)_mm512_shuffle_epi8((__m512i)table, (__m512i)indices); }

    static inline Words high_bytes(Words words) { return (Words)_mm512_maddubs_epi16((__m512i)words, _mm512_set1_epi16(0x100)); }

    static inline __m256i half(const uint8_t *at, int64_t stride) { return _mm256_loadu2_m128i((const __m128i *)(at + stride), (const __m128i *)at); }
    static inline Vector rows(const uint8_t *at, int64_t stride) {
        return (Vector)_mm512_inserti64x4(_mm512_castsi256_si512(half(at, stride)), half(at + 2 * stride, stride), 1);
    }

    static inline Vector low(Vector a, Vector b) { return (Vector)_mm512_unpacklo_epi8((__m512i)a, (__m512i)b); }
    static inline Vector high(Vector a, Vector b) { return (Vector)_mm512_unpackhi_epi8((__m512i)a, (__m512i)b); }
};

int shuffle_8_bits(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return ShuffleProduct<Bytes64>::serves(matrix) ? ShuffleProduct<Bytes64>(matrix, x).run(y, y_stride, threads) : 1;
}
}  // namespace avx512bw
#endif

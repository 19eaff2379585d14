// AVX-512: float32, bfloat16 by vdpbf16ps, 8 bits by vpdpbusd.
#include <stdlib.h>

#include "sedaq.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma")
#include <immintrin.h>

#define WITH_BFLOAT16
namespace avx512 {
#define REGISTER 64
#include "wide.h"
#include "decode.h"
#include "gather.h"
#include "scratch.h"
#include "product.h"
#include "vectors.h"
#include "few_tokens.h"
#define F32_TOKENS 8
#define F32_BLOCKS 2
#include "float32.h"
#include "conversions.h"
#define WITH_TRANSPOSE
#define LOOKUP_SUMS 16
#include "entries.h"
#include "integer_entries.h"
#include "lookup.h"

struct Bfloat16Dot : Bfloat16<1> {
    static void begin() {}
    static void end() {}

    static inline void add(__m512 &sum, uint32_t a, const uint32_t *b) {
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)_mm512_loadu_si512(b));
    }

    static void multiply(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, float *c, bool more) {
        multiply_tiles<Bfloat16Dot, 8, 2, __m512>(a, n_a, b, n_b, steps, c, more);
    }
};

// vpdpbusd wants one operand unsigned: tokens are moved up by 128, which adds 128 times a row's sum to every product.
struct Int8Dot {
    enum { PER_DWORD = 4, PARTS = 1, EIGHT_BIT = 1, TAKES_BF16 = 0, LIMIT = 127, ROW_LIMIT = 127 };
    typedef int32_t Sum;
    typedef uint16_t Weight;

    static void begin() {}
    static void end() {}

    static void convert_token(const float *row, float scale, uint32_t *const *out) {
        _mm512_storeu_si512(out[0], _mm512_xor_si512(bytes(row, scale), _mm512_set1_epi8((char)0x80)));
    }

    static void convert_rows(const uint16_t *values, int64_t stride, const int16_t *multipliers, uint32_t *const *out, int32_t *sums) {
        __m512i rows[ROWS];
        for (int r = 0; r < ROWS; r++) {
            rows[r] = bytes(values + r * stride, multipliers[r]);
            sums[r] += 128 * _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), rows[r]));
        }
        store_transposed(rows, out[0]);
    }

    static inline void add(__m512i &sum, uint32_t a, const uint32_t *b) {
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32((int)a), _mm512_loadu_si512(b));
    }

    static void multiply(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, int32_t *c, bool more) {
        multiply_tiles<Int8Dot, 8, 2, __m512i>(a, n_a, b, n_b, steps, c, more);
    }
};

int lookup_16_bits(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return LookupProduct<2>(matrix, x).run(y, y_stride, threads);
}

int lookup_8_bits(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return LookupProduct<4>(matrix, x).run(y, y_stride, threads);
}

int product_bf16(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return Product<Bfloat16Dot>(matrix, x).run(y, y_stride, threads);
}

int product_int8(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return Product<Int8Dot>(matrix, x).run(y, y_stride, threads);
}
}  // namespace avx512
#endif

// AVX2 with vpdpbusd: 8 bits by multiplication.
#include <stdlib.h>

#include "sedaq.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avxvnni")
#include <immintrin.h>

namespace avxvnni {
#define REGISTER 32
#include "wide.h"
#include "decode.h"
#include "gather.h"
#include "scratch.h"
#include "product.h"
#include "int8.h"

struct EightBitDot {
    enum { LIMIT = 127, ROW_LIMIT = 127 };

    static inline __m256i add(__m256i sum, __m256i a, __m256i b, __m256i c, __m256i d) {
        return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sum, a, c), b, d);
    }
};

int product_int8(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return Product<Int8<EightBitDot>>(matrix, x).run(y, y_stride, threads);
}
}  // namespace avxvnni
#endif

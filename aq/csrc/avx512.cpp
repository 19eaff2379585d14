// AVX-512.
#include <omp.h>
#include <stdlib.h>

#include "encoder.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi")
#define ENCODER_AVX512
namespace encoder_avx512 {
#include "vectors.h"
#include "products.h"
#include "choice.h"
#include "search.h"
#include "passes.h"
#include "sums.h"
#include "kmeans.h"
#include "factor.h"
}  // namespace encoder_avx512
#endif

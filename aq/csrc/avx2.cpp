// AVX2 and FMA.
#include <omp.h>
#include <stdlib.h>

#include "encoder.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,popcnt,bmi")
#define ENCODER_AVX2
namespace encoder_avx2 {
#include "vectors.h"
#include "products.h"
#include "choice.h"
#include "search.h"
#include "passes.h"
#include "sums.h"
#include "kmeans.h"
#include "factor.h"
}  // namespace encoder_avx2
#endif

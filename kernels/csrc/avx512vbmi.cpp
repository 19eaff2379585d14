// AVX-512 with VBMI: few tokens by tables of bytes in registers.
#include <stdlib.h>

#include "sedaq.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma")
#include <immintrin.h>

namespace avx512vbmi {
#define REGISTER 64
#include "wide.h"
#include "decode.h"
#include "gather.h"
#include "scratch.h"
#include "product.h"
#include "vectors.h"
#include "few_tokens.h"
#include "conversions.h"
#define WITH_TRANSPOSE
#define LOOKUP_SUMS 16
#include "entries.h"
#include "integer_entries.h"
#include "lookup.h"
#include "permute.h"

int few_8_bits(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    if (tokens_of(x) > FEW || matrix.code_bytes > 1) return LookupProduct<4>(matrix, x).run(y, y_stride, threads);
    return PermuteProduct(matrix, x).run(y, y_stride, threads);
}
}  // namespace avx512vbmi
#endif

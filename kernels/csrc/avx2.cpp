// AVX2 and FMA: float32.
#include <stdlib.h>

#include "sedaq.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
namespace avx2 {
#define REGISTER 32
#include "wide.h"
#include "decode.h"
#include "gather.h"
#include "scratch.h"
#include "product.h"
#include "vectors.h"
#include "few_tokens.h"
#define F32_TOKENS 6
#define F32_BLOCKS 1
#include "float32.h"
#define LOOKUP_SUMS 4
#include "entries.h"
#include "lookup.h"
}  // namespace avx2
#endif

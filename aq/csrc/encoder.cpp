// Which instruction sets this processor has, and the way to each one's functions.
#include "encoder.h"

#if defined(__x86_64__)
static bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#define CALL(isa, call)                                                                                   \
    if (!sedaq_encoder_has(isa)) return 1;                                                                \
    return isa == SEDAQ_AVX512 ? encoder_avx512::call : isa == SEDAQ_AVX2 ? encoder_avx2::call : encoder_portable::call
#else
static bool has_avx2() { return false; }
static bool has_avx512() { return false; }
#define CALL(isa, call)                    \
    if (!sedaq_encoder_has(isa)) return 1; \
    return encoder_portable::call
#endif

static int at_least_one(int threads) { return threads < 1 ? 1 : threads; }

extern "C" {

int sedaq_encoder_interface(void) { return SEDAQ_ENCODER_INTERFACE; }

int sedaq_encoder_has(int isa) { return isa == SEDAQ_PORTABLE || (isa == SEDAQ_AVX2 && has_avx2()) || (isa == SEDAQ_AVX512 && has_avx512()); }

int sedaq_encode(int isa, const sedaq_part *part, int64_t within, int64_t across, int threads) {
    CALL(isa, encode(*part, within, across, at_least_one(threads)));
}
int sedaq_improve(int isa, const sedaq_part *part, int64_t within, int threads) { CALL(isa, improve(*part, within, at_least_one(threads))); }
int sedaq_products(int isa, const sedaq_part *part, float *found, int threads) { CALL(isa, products(*part, found, at_least_one(threads))); }
int sedaq_forms(int isa, const sedaq_part *part, double *found, int threads) { CALL(isa, forms(*part, found, at_least_one(threads))); }
int sedaq_sums_by_code(int isa, const sedaq_part *part, float *sums, int threads) { CALL(isa, sums_by_code(*part, sums, at_least_one(threads))); }
int sedaq_carried_by_code(int isa, const sedaq_part *part, float *carried, int threads) {
    CALL(isa, carried_by_code(*part, carried, at_least_one(threads)));
}
int sedaq_assign(int isa, const sedaq_cloud *cloud, float *left, float *right, int threads) {
    CALL(isa, assign(*cloud, left, right, at_least_one(threads)));
}
int sedaq_kmeans(int isa, const sedaq_cloud *clouds, int n_clouds, float *centres, const float *spares, int64_t n_spares, int iterations, int threads) {
    CALL(isa, kmeans(clouds, n_clouds, centres, spares, n_spares, iterations, at_least_one(threads)));
}
int sedaq_factor(int isa, float *matrix, int64_t n, int threads) { CALL(isa, factor(matrix, n, at_least_one(threads))); }
}

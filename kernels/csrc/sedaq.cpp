// Which kernels this processor has, and the way to them.
#include "sedaq.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static bool bit(unsigned leaf, unsigned subleaf, int reg, int n) {
    unsigned r[4];
    return __get_cpuid_count(leaf, subleaf, r, r + 1, r + 2, r + 3) && (r[reg] >> n & 1);
}

static uint64_t enabled_state() {  // what the operating system saves of a thread's registers
    if (!bit(1, 0, 2, 27)) return 0;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool tiles_allowed() {  // Linux gives AMX's registers to processes that ask for them
#if defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return (enabled_state() & 0x60000) == 0x60000 && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return false;
#endif
}

struct Features {
    bool avx2, avxvnni, avx512, vbmi, vnni, bf16, amx_bf16, amx_int8;
    Features() {
        const uint64_t state = enabled_state();
        avx2 = (state & 6) == 6 && bit(7, 0, 1, 5) && bit(1, 0, 2, 12);
        avxvnni = avx2 && bit(7, 1, 0, 4);
        avx512 = avx2 && (state & 0xe6) == 0xe6 && bit(7, 0, 1, 16) && bit(7, 0, 1, 30) && bit(7, 0, 1, 17) && bit(7, 0, 1, 31);
        vbmi = avx512 && bit(7, 0, 2, 1);
        vnni = avx512 && bit(7, 0, 2, 11);
        bf16 = avx512 && bit(7, 1, 0, 5);
        const bool tiles = bf16 && bit(7, 0, 3, 24) && tiles_allowed();
        amx_bf16 = tiles && bit(7, 0, 3, 22);
        amx_int8 = tiles && bit(7, 0, 3, 25);
    }
};

static sedaq_kernel *kernel_of(int kernel) {
    static const Features has;
    switch (kernel) {
        case SEDAQ_F32_PORTABLE: return portable::product_f32;
        case SEDAQ_F32_AVX2: return has.avx2 ? avx2::product_f32 : nullptr;
        case SEDAQ_F32_AVX512: return has.avx512 ? avx512::product_f32 : nullptr;
        case SEDAQ_SPLIT_AMX: return has.amx_bf16 ? amx::product_split : nullptr;
        case SEDAQ_BF16_AVX512: return has.bf16 ? avx512::product_bf16 : nullptr;
        case SEDAQ_BF16_AMX: return has.amx_bf16 ? amx::product_bf16 : nullptr;
        case SEDAQ_INT8_AVX2: return has.avxvnni ? avxvnni::product_int8 : has.avx2 ? avx2::product_int8 : nullptr;
        case SEDAQ_INT8_AVX512: return has.vnni ? avx512::product_int8 : nullptr;
        case SEDAQ_INT8_AMX: return has.amx_int8 ? amx::product_int8 : nullptr;
        case SEDAQ_LOOKUP32_PORTABLE: return portable::lookup_float32;
        case SEDAQ_LOOKUP32_AVX2: return has.avx2 ? avx2::lookup_float32 : nullptr;
        case SEDAQ_LOOKUP32_AVX512: return has.avx512 ? avx512::lookup_float32 : nullptr;
        case SEDAQ_LOOKUP16_AVX512: return has.avx512 ? avx512::lookup_16_bits : nullptr;
        case SEDAQ_LOOKUP8_AVX512: return has.vbmi ? avx512vbmi::few_8_bits : has.avx512 ? avx512::lookup_8_bits : nullptr;
        case SEDAQ_SHUFFLE8_AVX2: return has.avx2 ? avx2::shuffle_8_bits : nullptr;
        case SEDAQ_SHUFFLE8_AVX512: return has.avx512 ? avx512bw::shuffle_8_bits : nullptr;
        default: return nullptr;
    }
}
#else
static sedaq_kernel *kernel_of(int kernel) { return kernel == SEDAQ_F32_PORTABLE ? portable::product_f32 : nullptr; }
#endif

extern "C" int sedaq_has(int kernel) { return kernel_of(kernel) != nullptr; }

extern "C" int sedaq_product(int kernel, const sedaq_matrix *matrix, const sedaq_input *x, void *y, int64_t y_stride, int threads) {
    sedaq_kernel *product = kernel_of(kernel);
    return product && matrix->group_size <= SEDAQ_LONGEST_GROUP ? product(*matrix, *x, y, y_stride, threads < 1 ? 1 : threads) : 1;
}

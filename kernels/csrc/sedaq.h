// Products of activations with coded matrices: the C interface (called from native.py by ctypes) and what all files share.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Row r, group j of the matrix is scales[r] · Σ_m codebooks[m, codes[r, j, m]].
typedef struct {
    int64_t n_out, n_in, n_groups;
    int32_t n_codebooks, n_entries, group_size;
    int32_t stride;            // floats from a codeword to the next: group_size rounded up to a power of two
    int32_t code_bytes;        // 1 or 2
    int32_t structure;         // of codebooks
    const void *codes;         // (n_out, n_groups, n_codebooks)
    const float *codebooks;    // (n_codebooks, n_entries, stride)
    const float *scales;       // (n_out)
    const float *row_maxima;   // (n_out), of unscaled weights; for 8-bit products only
    const float *bias;         // (n_out) or null
} sedaq_matrix;

// `length` columns of the coded matrix, first, first + apart, …, meet neighbouring channels from `channel` on at one tap.
typedef struct {
    int64_t first, length, tap, channel, apart;
} sedaq_run;

// Activations, channels innermost: (images, *size, channels). One token for every place of the output; a linear layer has images only.
typedef struct {
    const void *data;
    int32_t is_bf16;           // else float32
    int32_t n_runs;
    const sedaq_run *runs;
    int64_t images;
    int64_t size[3], out_size[3], kernel[3], step[3], padding[3], dilation[3];
    int64_t image_stride, stride[3];  // elements
} sedaq_input;

enum { SEDAQ_LONGEST_GROUP = 256 };

// Mirrored: c[k + K/2] = −c[k]. Hierarchical, K = n²: c[h n + l] = c[h n] + c[l] − c[0].
enum { SEDAQ_FREE = 0, SEDAQ_MIRRORED = 1, SEDAQ_HIERARCHICAL = 2 };

// Which arithmetic; each exists for the instruction sets that sedaq_has() confirms.
enum {
    SEDAQ_F32_PORTABLE = 0,
    SEDAQ_F32_AVX2 = 1,
    SEDAQ_F32_AVX512 = 2,
    SEDAQ_SPLIT_AMX = 3,  // float32 as the sum of two bfloat16
    SEDAQ_BF16_AVX512 = 4,
    SEDAQ_BF16_AMX = 5,
    SEDAQ_INT8_AVX2 = 6,
    SEDAQ_INT8_AVX512 = 7,
    SEDAQ_INT8_AMX = 8,
    SEDAQ_LOOKUP32_PORTABLE = 9,
    SEDAQ_LOOKUP32_AVX2 = 10,
    SEDAQ_LOOKUP32_AVX512 = 11,
    SEDAQ_LOOKUP16_AVX512 = 12,
    SEDAQ_LOOKUP8_AVX512 = 13,
    SEDAQ_SHUFFLE8_AVX2 = 14,
    SEDAQ_SHUFFLE8_AVX512 = 15,
    SEDAQ_N_KERNELS = 16,
};

// Whether this processor and this build have a kernel.
int sedaq_has(int kernel);

// y (tokens, n_out) = x Wᵀ + bias, float32 or bfloat16 as x is. Returns 0, or 1 where the kernel is not to be had or groups are too long
// for it, 2 out of memory.
int sedaq_product(int kernel, const sedaq_matrix *matrix, const sedaq_input *x, void *y, int64_t y_stride, int threads);

// Greatest magnitude in every row, unscaled: what sedaq_matrix.row_maxima wants. Returns 0, or 2 out of memory.
int sedaq_row_maxima(const sedaq_matrix *matrix, float *maxima, int threads);

#ifdef __cplusplus
}

typedef int sedaq_kernel(const sedaq_matrix &, const sedaq_input &, void *y, int64_t y_stride, int threads);
namespace portable { sedaq_kernel product_f32, lookup_float32; }
namespace avx2 { sedaq_kernel product_f32, product_int8, lookup_float32, shuffle_8_bits; }
namespace avx512 { sedaq_kernel product_f32, product_bf16, product_int8, lookup_float32, lookup_16_bits, lookup_8_bits; }
namespace avx512vbmi { sedaq_kernel few_8_bits; }
namespace avxvnni { sedaq_kernel product_int8; }
namespace avx512bw { sedaq_kernel shuffle_8_bits; }
namespace amx { sedaq_kernel product_split, product_bf16, product_int8; }
#endif

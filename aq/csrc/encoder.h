// The encoder's loops: the C interface (called from native.py by ctypes) and what all files share.
//
// Every sum is taken in an order that depends on neither the instruction set (with FMA) nor the number of threads: vectors run over codewords
// or columns, never over what is summed, and rows are cut into chunks of fixed size. Shapes as in part.py: S conv groups of R rows, n columns,
// groups of g columns, M codebooks of K entries.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// A diagonal block of H or of its factor, one for each conv group: entry (i, j) of group s is data[s · group_stride + i · row_stride + j].
typedef struct {
    const float *data;
    int64_t width, group_stride, row_stride;
} sedaq_block;

typedef struct {
    int64_t n_conv_groups, n_rows, n_columns;  // S, R, n
    int32_t group_size, n_codebooks, n_entries, n_blocks;
    const sedaq_block *blocks;
    const float *weights;    // (S, R, n)
    const float *weighted;   // (S, R, n), weights times H
    const float *scales;     // (S, R)
    const float *codebooks;  // (M, K, g)
    int64_t *codes;          // (S, R, n / g, M)
} sedaq_part;

typedef struct {
    int64_t n_positions, n_vectors;  // P, R
    int32_t group_size, n_centres;   // g, K
    const float *vectors;            // (P, R, g)
    const float *metric;             // (P, g, g)
    const float *mass;               // (P, R)
    const float *centres;            // (K, g)
    int64_t *codes;                  // (P, R)
} sedaq_cloud;

// Counts changes of this interface, so that a library of other sources is noticed.
enum { SEDAQ_ENCODER_INTERFACE = 2, SEDAQ_LONGEST_GROUP = 256 };
int sedaq_encoder_interface(void);

enum { SEDAQ_PORTABLE = 0, SEDAQ_AVX2 = 1, SEDAQ_AVX512 = 2, SEDAQ_N_ISAS = 3 };

// Whether this processor and this build have an instruction set.
int sedaq_encoder_has(int isa);

// All functions return 0, or 1 where the instruction set is not to be had or a size is out of range, 2 out of memory.

// Codes from nothing, with error feedback; `blocks` are those of the factor C (upper triangular, H = C Cᵀ), within and across as in beam.py.
int sedaq_encode(int isa, const sedaq_part *part, int64_t within, int64_t across, int threads);

// Every group's codes anew, in order, given all others; `blocks` are those of H, here and below.
int sedaq_improve(int isa, const sedaq_part *part, int64_t within, int threads);

// products (S, R, n): weights times H.
int sedaq_products(int isa, const sedaq_part *part, float *products, int threads);

// forms (S, R, 2): u H uᵀ and w H uᵀ of each row, u its sums of codewords, unscaled; without codebooks w H wᵀ and nothing.
int sedaq_forms(int isa, const sedaq_part *part, double *forms, int threads);

// sums (M, K, g): over the positions of each codeword, s · (x H) for x = s u, or for x = w without codebooks.
int sedaq_sums_by_code(int isa, const sedaq_part *part, float *sums, int threads);

// carried (M, K, g, g): over the positions of each codeword, s² times the diagonal block of H there.
int sedaq_carried_by_code(int isa, const sedaq_part *part, float *carried, int threads);

// The nearest centre of each vector in its position's metric; sums, where asked for (not null): both sides of each centre's equation,
// left (K, g, g) and right (K, g).
int sedaq_assign(int isa, const sedaq_cloud *cloud, float *left, float *right, int threads);

// Lloyd's algorithm on several clouds together, from and to centres (K, g), which are the clouds' own. A centre that lost its vectors moves
// to the next of n_spares `spares` (n_spares, g), from the first again after the last.
int sedaq_kmeans(int isa, const sedaq_cloud *clouds, int n_clouds, float *centres, const float *spares, int64_t n_spares, int iterations, int threads);

// matrix (n, n), symmetric → C, upper triangular with matrix = C Cᵀ, in place. Returns 3 where a pivot is not positive.
int sedaq_factor(int isa, float *matrix, int64_t n, int threads);

#ifdef __cplusplus
}

#define SEDAQ_ENCODER                                                                       \
    int encode(const sedaq_part &, int64_t within, int64_t across, int threads);            \
    int improve(const sedaq_part &, int64_t within, int threads);                           \
    int products(const sedaq_part &, float *, int threads);                                 \
    int forms(const sedaq_part &, double *, int threads);                                   \
    int sums_by_code(const sedaq_part &, float *, int threads);                             \
    int carried_by_code(const sedaq_part &, float *, int threads);                          \
    int assign(const sedaq_cloud &, float *left, float *right, int threads);                \
    int kmeans(const sedaq_cloud *, int, float *, const float *, int64_t, int, int threads); \
    int factor(float *matrix, int64_t n, int threads);
namespace encoder_portable { SEDAQ_ENCODER }
namespace encoder_avx2 { SEDAQ_ENCODER }
namespace encoder_avx512 { SEDAQ_ENCODER }
#endif

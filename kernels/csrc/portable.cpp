// What any processor runs.
#include <stdlib.h>

#include "sedaq.h"

namespace portable {
#define REGISTER 16
#include "wide.h"
#include "decode.h"
#include "gather.h"
#include "scratch.h"
#include "product.h"
#include "vectors.h"
#include "few_tokens.h"
#if defined(__aarch64__)
#define F32_TOKENS 4
#else
#define F32_TOKENS 2  // SSE has 16 registers
#endif
#define F32_BLOCKS 1
#include "float32.h"
#define LOOKUP_SUMS 2
#include "entries.h"
#include "lookup.h"

static int row_maxima(const sedaq_matrix &m, float *maxima, int threads) {
    const int64_t columns = m.n_groups * m.group_size;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const int64_t stride = columns + m.stride + 16;
        if (!of_thread.reserve(Scratch::bytes_of<float>(ROWS * stride))) failed = 2;
        const Chunk<float> chunk = {of_thread.take<float>(ROWS * stride), stride};
#pragma omp for
        for (int64_t row = 0; row < m.n_out; row += ROWS) {
            if (failed) continue;
            decode(m, m.codebooks, row, 0, m.n_groups, columns, chunk);
            for (int64_t r = 0; r < smaller(ROWS, m.n_out - row); r++) maxima[row + r] = max_magnitude(chunk.values + r * stride, columns);
        }
    }
    return failed;
}
}  // namespace portable

extern "C" int sedaq_row_maxima(const sedaq_matrix *matrix, float *maxima, int threads) { return portable::row_maxima(*matrix, maxima, threads); }

// The upper triangular factor of a symmetric matrix, H = C Cᵀ, from the last columns to the first.

enum { STEP = 128 };

// One diagonal block (n ≤ STEP) in place; false where a pivot is not positive.
static bool factor_block(float *matrix, int64_t stride, int64_t n) {
    float column[STEP + 16];
    for (int64_t j = n; j-- > 0;) {
        const float pivot = matrix[j * stride + j];
        if (!(pivot > 0) || pivot == INFINITE) return false;
        const float root = __builtin_sqrtf(pivot);
        for (int64_t i = 0; i < j; i++) column[i] = matrix[i * stride + j] /= root;
        matrix[j * stride + j] = root;
        for (int64_t i = 0; i < j; i++)
            for (int64_t k = i; k < j; k++) matrix[i * stride + k] = multiply_add(-column[i], column[k], matrix[i * stride + k]);
    }
    return true;
}

// x Cᵀ = row, C a block of n columns given transposed (columns first): from the last to the first.
static void solve_row(float *row, const float *transposed, int64_t n) {
    for (int64_t c = n; c-- > 0;) {
        const float *column = transposed + c * STEP;
        const float x = row[c] /= column[c];
        for (int64_t b = 0; b < c; b++) row[b] = multiply_add(-x, column[b], row[b]);
    }
}

int factor(float *matrix, int64_t n, int threads) {
    Memory<float> transposed(STEP * STEP), panels(round_up(n, WINDOW) * STEP);
    if (!transposed.ok() || !panels.ok()) return 2;
    for (int64_t stop = n; stop > 0;) {
        const int64_t start = larger(0, stop - STEP), width = stop - start;
        if (!factor_block(matrix + start * n + start, n, width)) return 3;
        for (int64_t i = 0; i < width; i++)
            for (int64_t c = 0; c < width; c++) transposed.data[c * STEP + i] = matrix[(start + i) * n + start + c];
#pragma omp parallel num_threads(threads)
        {
#pragma omp for
            for (int64_t row = 0; row < start; row++) solve_row(matrix + row * n + start, transposed.data, width);
#pragma omp for  // −Pᵀ in panels, P the rows above
            for (int64_t panel = 0; panel < pieces(start, WIDE); panel++)
                for (int64_t k = 0; k < width; k++)
                    for (int64_t c = 0; c < WIDE; c++) {
                        const int64_t row = panel * WIDE + c;
                        panels.data[(panel * width + k) * WIDE + c] = row < start ? -matrix[row * n + start + k] : 0;
                    }
#pragma omp for schedule(dynamic)
            for (int64_t panel = 0; panel < pieces(start, WIDE); panel++) {
                const int64_t rows = smaller(start, (panel + 1) * WIDE);
                multiply(matrix + start, n, rows, panels.data + panel * width * WIDE, width, 1, matrix + panel * WIDE, n);
            }
        }
        stop = start;
    }
    for (int64_t i = 1; i < n; i++) __builtin_memset(matrix + i * n, 0, (size_t)i * sizeof(float));
    return 0;
}

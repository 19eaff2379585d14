// float32 in the compiler's own vectors: one source for every instruction set.

struct Float32 {
    enum { PER_DWORD = 1, PARTS = 1, EIGHT_BIT = 0, TAKES_BF16 = 0 };
    typedef float Sum, Weight;

    static void begin() {}
    static void end() {}

    static void convert_token(const float *row, float, uint32_t *const *out) { __builtin_memcpy(out[0], row, 64); }

    static void convert_rows(const float *values, int64_t stride, const int16_t *, uint32_t *const *out, int32_t *) {
        for (int64_t r = 0; r < ROWS; r += 4)
            for (int64_t d = 0; d < 16; d += 4) transpose_four(values + r * stride + d, stride, (float *)out[0] + d * 16 + r, 16);
    }

    static inline void add(Sixteen &sum, uint32_t a, const uint32_t *b) {
        union { uint32_t i; float f; } u = {a};
        Sixteen rows;
        load(rows, b);
        sum += u.f * rows;
    }

    static void multiply(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, float *c, bool more) {
        multiply_tiles<Float32, F32_TOKENS, F32_BLOCKS, Sixteen>(a, n_a, b, n_b, steps, c, more);
    }
};

int product_f32(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    if (tokens_of(x) <= FEW) return product_of_few(matrix, x, y, y_stride, threads);
    return Product<Float32>(matrix, x).run(y, y_stride, threads);
}

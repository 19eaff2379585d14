// Every kernel of this processor against a plain loop, for `make sanitize`: built with the address and undefined-behaviour sanitizers.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../../kernels/csrc/sedaq.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include <immintrin.h>
namespace emulated {
#define REGISTER 32
#include "../../kernels/csrc/wide.h"
#include "../../kernels/csrc/decode.h"
#include "../../kernels/csrc/gather.h"
#include "../../kernels/csrc/scratch.h"
#include "../../kernels/csrc/product.h"
#include "../../kernels/csrc/int8.h"
#include "../../kernels/csrc/byte_tables.h"
#include "../../kernels/csrc/shuffle.h"

// What vpdpbusd and 64-byte shuffles compute, so that kernels of processors with these are tested on all with AVX2.
struct EightBitDot {
    enum { LIMIT = 127, ROW_LIMIT = 127 };

    static __m256i add(__m256i sum, __m256i a, __m256i b, __m256i c, __m256i d) {
        uint8_t tokens[2][32];
        int8_t rows[2][32];
        int32_t sums[8];
        store(tokens[0], a);
        store(tokens[1], b);
        store(rows[0], c);
        store(rows[1], d);
        store(sums, sum);
        for (int i = 0; i < 64; i++) sums[i % 32 / 4] += tokens[i / 32][i % 32] * rows[i / 32][i % 32];
        return at(sums);
    }

    static __m256i at(const int32_t *sums) { return _mm256_loadu_si256((const __m256i *)sums); }
};

struct Bytes64 {
    enum { BLOCKS = 3 };
    typedef uint8_t Vector __attribute__((vector_size(64)));
    typedef uint16_t Words __attribute__((vector_size(64)));
    typedef uint32_t Dwords __attribute__((vector_size(64)));

    template <class Byte>
    static Vector made(const Byte &byte) {
        Vector x;
        for (int i = 0; i < 64; i++) x[i] = byte(i);
        return x;
    }

    static Vector table(const uint8_t *at) { return made([=](int i) { return at[i % 16]; }); }
    static Vector lookup(Vector table, Vector indices) { return made([=](int i) { return table[i / 16 * 16 + indices[i]]; }); }
    static Vector rows(const uint8_t *at, int64_t stride) { return made([=](int i) { return at[i / 16 * stride + i % 16]; }); }
    static Vector in_turn(Vector a, Vector b, int from) {
        return made([=](int i) {
            const int at = i / 16 * 16 + from + i % 16 / 2;
            return i % 2 ? b[at] : a[at];
        });
    }
    static Vector low(Vector a, Vector b) { return in_turn(a, b, 0); }
    static Vector high(Vector a, Vector b) { return in_turn(a, b, 8); }
    static Words high_bytes(Words words) { return words >> 8; }
};

static int product_int8(const sedaq_matrix &matrix, const sedaq_input &x, float *y) {
    return Product<Int8<EightBitDot>>(matrix, x).run(y, matrix.n_out, 2);
}

static int shuffle_8_bits(const sedaq_matrix &matrix, const sedaq_input &x, float *y) {
    return ShuffleProduct<Bytes64>::serves(matrix) ? ShuffleProduct<Bytes64>(matrix, x).run(y, matrix.n_out, 2) : 1;
}
}  // namespace emulated
#pragma GCC pop_options
#endif

struct Case {
    int64_t n_out, n_in, tokens;
    int m, k, g;
    int64_t kernel;  // 0: linear; else a convolution over two axes
    int structure = SEDAQ_FREE;
};

static std::mt19937 rng(0);

static std::vector<float> normal(int64_t n) {
    std::normal_distribution<float> draw;
    std::vector<float> x(n);
    for (float &value : x) value = draw(rng);
    return x;
}

enum { EMULATED_INT8 = SEDAQ_N_KERNELS, EMULATED_SHUFFLE8, N_KERNELS };
static const double ALLOWED[N_KERNELS] = {1e-5, 1e-5, 1e-5, 1e-5, 1e-2, 1e-2, 3e-2, 3e-2, 3e-2, 1e-5, 1e-5, 1e-5, 1e-2, 3e-2, 3e-2, 3e-2, 3e-2, 3e-2};

static bool has(int kernel) { return sedaq_has(kernel < SEDAQ_N_KERNELS ? kernel : (int)SEDAQ_INT8_AVX2); }

static int product(int kernel, const sedaq_matrix &matrix, const sedaq_input &x, float *y) {
#if defined(__x86_64__)
    if (kernel == EMULATED_INT8) return emulated::product_int8(matrix, x, y);
    if (kernel == EMULATED_SHUFFLE8) return emulated::shuffle_8_bits(matrix, x, y);
#endif
    return sedaq_product(kernel, &matrix, &x, y, matrix.n_out, 2);
}

static bool serves(int kernel, const Case &c) {
    if (kernel != SEDAQ_SHUFFLE8_AVX2 && kernel != SEDAQ_SHUFFLE8_AVX512 && kernel != EMULATED_SHUFFLE8) return true;
    return c.k <= 16 || (c.structure == SEDAQ_HIERARCHICAL && c.k <= 256);
}

// Relative error of one product, or −1 where the call failed.
static double error_of(int kernel, const Case &c) {
    const int64_t taps = c.kernel ? c.kernel * c.kernel : 1, groups = (c.n_in * taps + c.g - 1) / c.g, columns = c.n_in * taps;
    int stride = 1;
    while (stride < c.g) stride *= 2;
    std::vector<uint8_t> bytes(c.n_out * groups * c.m);
    std::vector<uint16_t> words(bytes.size());
    for (size_t i = 0; i < words.size(); i++) bytes[i] = words[i] = (uint16_t)(rng() % c.k);
    std::vector<float> books = normal((int64_t)c.m * c.k * stride), scales = normal(c.n_out), bias = normal(c.n_out), maxima(c.n_out);
    for (int64_t w = 0; w < (int64_t)c.m * c.k; w++)
        for (int i = c.g; i < stride; i++) books[w * stride + i] = 0;
    const int half = (int)std::sqrt(c.k);
    for (int64_t w = 0; w < (int64_t)c.m * c.k; w++)
        for (int i = 0; i < c.g; i++) {
            const int64_t first = w / c.k * c.k, k = w % c.k;
            if (c.structure == SEDAQ_MIRRORED && k >= c.k / 2) books[w * stride + i] = -books[(w - c.k / 2) * stride + i];
            if (c.structure == SEDAQ_HIERARCHICAL && k >= half && k % half)
                books[w * stride + i] = books[(first + k / half * half) * stride + i] + books[(first + k % half) * stride + i] - books[first * stride + i];
        }
    sedaq_matrix matrix = {c.n_out, columns, groups, c.m, c.k, c.g, stride, c.k <= 256 ? 1 : 2, c.structure,
                           c.k <= 256 ? (const void *)bytes.data() : words.data(), books.data(), scales.data(), nullptr, bias.data()};
    if (sedaq_row_maxima(&matrix, maxima.data(), 2)) return -1;
    matrix.row_maxima = maxima.data();

    // Columns are tap by tap, as formats over channels have them.
    std::vector<sedaq_run> runs;
    for (int64_t tap = 0; tap < taps; tap++) runs.push_back({tap * c.n_in, c.n_in, tap, 0, 1});
    const int64_t side = c.kernel ? 5 : 1, images = c.kernel ? (c.tokens + 8) / 9 : c.tokens, out_side = c.kernel ? 3 : 1;
    std::vector<float> x = normal(images * side * side * c.n_in);
    sedaq_input input = {x.data(), 0, (int32_t)runs.size(), runs.data(), images, {1, side, side}, {1, out_side, out_side},
                         {1, c.kernel ? c.kernel : 1, c.kernel ? c.kernel : 1}, {1, 2, 2}, {0, c.kernel / 2, c.kernel / 2}, {1, 1, 1},
                         side * side * c.n_in, {0, side * c.n_in, c.n_in}};
    const int64_t tokens = images * out_side * out_side;
    std::vector<float> y(tokens * c.n_out);
    const int status = product(kernel, matrix, input, y.data());
    if (status || !serves(kernel, c)) return status == 1 && !serves(kernel, c) ? 0 : -1;

    double noise = 0, signal = 0;
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t image = t / (out_side * out_side), row = t / out_side % out_side, column = t % out_side;
        for (int64_t n = 0; n < c.n_out; n++) {
            double sum = 0;
            for (int64_t i = 0; i < columns; i++) {
                const int64_t tap = i / c.n_in, k = c.kernel ? c.kernel : 1;
                const int64_t p = c.kernel ? row * 2 - k / 2 + tap / k : 0, q = c.kernel ? column * 2 - k / 2 + tap % k : 0;
                if (p < 0 || q < 0 || p >= side || q >= side) continue;
                double weight = 0;
                for (int m = 0; m < c.m; m++) weight += books[((int64_t)m * c.k + words[(n * groups + i / c.g) * c.m + m]) * stride + i % c.g];
                sum += weight * x[((image * side + p) * side + q) * c.n_in + i % c.n_in];
            }
            const double exact = sum * scales[n] + bias[n], difference = y[t * c.n_out + n] - exact;
            noise += difference * difference;
            signal += exact * exact + bias[n] * bias[n];  // where these cancel, nothing is exact
        }
    }
    return signal > 0 ? std::sqrt(noise / signal) : 0;
}

int main() {
    const Case cases[] = {{1, 1, 1, 1, 2, 1, 0},     {17, 33, 5, 2, 16, 8, 0},    {64, 64, 32, 1, 256, 4, 0}, {65, 127, 33, 3, 300, 9, 0},
                          {31, 200, 40, 5, 8, 32, 0}, {20, 300, 9, 2, 16, 49, 0},  {20, 600, 3, 1, 16, 200, 0}, {96, 48, 16, 1, 4096, 2, 0}, {16, 16, 0, 1, 4, 4, 0},    {24, 6, 27, 2, 16, 4, 3},   {40, 64, 100, 2, 16, 8, 3},
                          {33, 5, 10, 1, 64, 3, 2},   {700, 130, 90, 2, 256, 8, 0},
                          {70, 50, 70, 2, 256, 8, 0, SEDAQ_HIERARCHICAL}, {290, 600, 140, 2, 256, 7, 0, SEDAQ_HIERARCHICAL}, {33, 40, 3, 1, 64, 3, 3, SEDAQ_HIERARCHICAL}, {129, 300, 9, 1, 16, 2, 0}, {70, 50, 40, 1, 4, 2, 0, SEDAQ_HIERARCHICAL}, {20, 60, 8, 1, 4096, 4, 0, SEDAQ_HIERARCHICAL},
                          {70, 50, 70, 2, 128, 8, 0, SEDAQ_MIRRORED},     {130, 90, 7, 3, 64, 5, 0, SEDAQ_MIRRORED},   {70, 1000, 2, 4, 100, 7, 0}};
    int failures = 0, run = 0;
    for (int kernel = 0; kernel < N_KERNELS; kernel++) {
        if (!has(kernel)) continue;
        for (const Case &c : cases) {
            const double error = error_of(kernel, c);
            run++;
            if (!(error >= 0 && error <= ALLOWED[kernel])) {
                std::printf("kernel %d, %ld x %ld, %ld tokens, %dx%dg%d, taps %ld: error %g\n", kernel, (long)c.n_out, (long)c.n_in, (long)c.tokens, c.m, c.k, c.g,
                            (long)(c.kernel * c.kernel), error);
                failures++;
            }
        }
    }
    if (sedaq_product(99, nullptr, nullptr, nullptr, 0, 1) != 1) failures++;
    std::printf("%d products, %d failures\n", run, failures);
    return failures || !run;
}

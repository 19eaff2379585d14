// AMX: products of whole tiles, in bfloat16, in pairs of bfloat16 that stand for float32, and in 8 bits.
#include <stdlib.h>

#include "sedaq.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,amx-int8,fma")
#include <immintrin.h>

#define WITH_BFLOAT16
namespace amx {
#define REGISTER 64
#include "wide.h"
#include "decode.h"
#include "gather.h"
#include "scratch.h"
#include "product.h"
#include "conversions.h"

static void configure() {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = {};
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
}

// Tiles 0 to 3 are sums, 4 and 5 tokens, 6 and 7 rows of the matrix. A missing second operand is the first once more. The panel's tiles
// are loaded as a stream: they come from the second-level cache, and would push the tokens out of the first.
static inline void load_sums(const void *c, bool more) {
    if (more) {
        const char *at = (const char *)c;
        _tile_loadd(0, at, PAIR * 4);
        _tile_loadd(1, at + ROWS * 4, PAIR * 4);
        _tile_loadd(2, at + 16 * PAIR * 4, PAIR * 4);
        _tile_loadd(3, at + 16 * PAIR * 4 + ROWS * 4, PAIR * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

static inline void store_sums(void *c) {
    char *at = (char *)c;
    _tile_stored(0, at, PAIR * 4);
    _tile_stored(1, at + ROWS * 4, PAIR * 4);
    _tile_stored(2, at + 16 * PAIR * 4, PAIR * 4);
    _tile_stored(3, at + 16 * PAIR * 4 + ROWS * 4, PAIR * 4);
}

#define PRODUCTS(DOT, a0, a1, b0, b1) \
    _tile_stream_loadd(6, b0, 64);    \
    _tile_loadd(4, a0, 64);           \
    DOT(0, 4, 6);                     \
    _tile_loadd(5, a1, 64);           \
    DOT(2, 5, 6);                     \
    _tile_stream_loadd(7, b1, 64);    \
    DOT(1, 4, 7);                     \
    DOT(3, 5, 7);

struct Bfloat16Tiles : Bfloat16<1> {
    static void begin() { configure(); }
    static void end() { _tile_release(); }

    static void multiply(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, float *c, bool more) {
        const uint32_t *a0 = a.tiles, *a1 = n_a == 2 ? a0 + a.next : a0, *b0 = b.tiles, *b1 = n_b == 2 ? b0 + b.next : b0;
        load_sums(c, more);
        for (int64_t s = 0; s < steps * TILE; s += TILE) {
            PRODUCTS(_tile_dpbf16ps, a0 + s, a1 + s, b0 + s, b1 + s)
        }
        store_sums(c);
    }
};

// (high + low)(high + low) less low · low, which is below 2⁻¹⁶ of the product.
struct SplitTiles : Bfloat16<2> {
    static void begin() { configure(); }
    static void end() { _tile_release(); }

    static void multiply(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, float *c, bool more) {
        const uint32_t *a0 = a.tiles, *a1 = n_a == 2 ? a0 + a.next : a0, *b0 = b.tiles, *b1 = n_b == 2 ? b0 + b.next : b0;
        load_sums(c, more);
        for (int64_t s = 0; s < steps * TILE; s += TILE) {
            PRODUCTS(_tile_dpbf16ps, a0 + a.part + s, a1 + a.part + s, b0 + s, b1 + s)
            _tile_loadd(4, a0 + s, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a1 + s, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            _tile_stream_loadd(6, b0 + b.part + s, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(2, 5, 6);
            _tile_stream_loadd(7, b1 + b.part + s, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        store_sums(c);
    }
};

struct Int8Tiles {
    enum { PER_DWORD = 4, PARTS = 1, EIGHT_BIT = 1, TAKES_BF16 = 0, LIMIT = 127, ROW_LIMIT = 127 };
    typedef int32_t Sum;
    typedef uint16_t Weight;

    static void begin() { configure(); }
    static void end() { _tile_release(); }

    static void convert_token(const float *row, float scale, uint32_t *const *out) { _mm512_storeu_si512(out[0], bytes(row, scale)); }

    static void convert_rows(const uint16_t *values, int64_t stride, const int16_t *multipliers, uint32_t *const *out, int32_t *) {
        __m512i rows[ROWS];
        for (int r = 0; r < ROWS; r++) rows[r] = bytes(values + r * stride, multipliers[r]);
        store_transposed(rows, out[0]);
    }

    static void multiply(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, int32_t *c, bool more) {
        const uint32_t *a0 = a.tiles, *a1 = n_a == 2 ? a0 + a.next : a0, *b0 = b.tiles, *b1 = n_b == 2 ? b0 + b.next : b0;
        load_sums(c, more);
        for (int64_t s = 0; s < steps * TILE; s += TILE) {
            PRODUCTS(_tile_dpbssd, a0 + s, a1 + s, b0 + s, b1 + s)
        }
        store_sums(c);
    }
};

int product_bf16(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return Product<Bfloat16Tiles>(matrix, x).run(y, y_stride, threads);
}

int product_split(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return Product<SplitTiles>(matrix, x).run(y, y_stride, threads);
}

int product_int8(const sedaq_matrix &matrix, const sedaq_input &x, void *y, int64_t y_stride, int threads) {
    return Product<Int8Tiles>(matrix, x).run(y, y_stride, threads);
}
}  // namespace amx
#endif

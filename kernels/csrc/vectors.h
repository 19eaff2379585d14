// Multiplication of tiles by vectors of 16 rows, one dword of a token at a time. `Dot` adds products of a token's dword and 16 rows' dwords.

template <class Dot, int TOKENS, int BLOCKS, class Sum, class Vector>
static inline void multiply_block(const uint32_t *a, const uint32_t *b, int64_t b_tile, int64_t steps, Sum *c) {
    Vector sums[TOKENS][BLOCKS] = {};
    for (int64_t s = 0; s < steps; s++, a += TILE, b += TILE) {
        for (int64_t d = 0; d < 16; d++) {
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
#pragma GCC unroll 8
                for (int n = 0; n < BLOCKS; n++) Dot::add(sums[t][n], a[t * 16 + d], b + n * b_tile + d * 16);
            }
        }
    }
    for (int t = 0; t < TOKENS; t++)
        for (int n = 0; n < BLOCKS; n++) store(c + t * PAIR + n * ROWS, sums[t][n]);
}

template <class Dot, int TOKENS, int BLOCKS, class Sum, class Vector>
static inline void multiply_tiles(const uint32_t *a, int n_a, const uint32_t *b, int n_b, int64_t steps, Sum *c) {
    const int64_t tile_row = steps * TILE;
    for (int t = 0; t < n_a * 16; t += TOKENS) {
        const uint32_t *tokens = a + t / 16 * tile_row + t % 16 * 16;
        if (n_b == 2 && BLOCKS == 2) {
            multiply_block<Dot, TOKENS, 2, Sum, Vector>(tokens, b, tile_row, steps, c + t * PAIR);
        } else {
            for (int n = 0; n < n_b; n++)
                multiply_block<Dot, TOKENS, 1, Sum, Vector>(tokens, b + n * tile_row, tile_row, steps, c + t * PAIR + n * ROWS);
        }
    }
}

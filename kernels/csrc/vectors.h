// Multiplication of tiles by vectors of 16 rows, one dword of a token at a time. `Dot` adds products of a token's dword and 16 rows' dwords.

template <class Dot, int TOKENS, int BLOCKS, class Sum, class Vector>
static inline void multiply_block(const uint32_t *a, const uint32_t *b, int64_t next_b, int64_t steps, Sum *c, bool more) {
    Vector sums[TOKENS][BLOCKS] = {};
    for (int t = 0; t < TOKENS && more; t++)
        for (int n = 0; n < BLOCKS; n++) load(sums[t][n], c + t * PAIR + n * ROWS);
    for (int64_t s = 0; s < steps; s++, a += TILE, b += TILE) {
        for (int64_t d = 0; d < 16; d++) {
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
#pragma GCC unroll 8
                for (int n = 0; n < BLOCKS; n++) Dot::add(sums[t][n], a[t * 16 + d], b + n * next_b + d * 16);
            }
        }
    }
    for (int t = 0; t < TOKENS; t++)
        for (int n = 0; n < BLOCKS; n++) store(c + t * PAIR + n * ROWS, sums[t][n]);
}

template <class Dot, int TOKENS, int BLOCKS, class Vector, class Sum>
static inline void multiply_tiles(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, Sum *c, bool more) {
    for (int t = 0; t < n_a * 16; t += TOKENS) {
        const uint32_t *tokens = a.tiles + t / 16 * a.next + t % 16 * 16;
        if (n_b == 2 && BLOCKS == 2) {
            multiply_block<Dot, TOKENS, 2, Sum, Vector>(tokens, b.tiles, b.next, steps, c + t * PAIR, more);
        } else {
            for (int n = 0; n < n_b; n++)
                multiply_block<Dot, TOKENS, 1, Sum, Vector>(tokens, b.tiles + n * b.next, 0, steps, c + t * PAIR + n * ROWS, more);
        }
    }
}

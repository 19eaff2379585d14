// Multiplication of tiles by vectors of 16 rows, one dword of a token at a time. `Dot` adds products of a token's dword and 16 rows' dwords.

template <class Dot, int TOKENS, int BLOCKS, class Sum, class Vector>
static inline void multiply_block(const uint32_t *a, const uint32_t *b, int64_t next_b, int64_t steps, Sum *c, bool more) {
    Vector sums[TOKENS][BLOCKS];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) {
#pragma GCC unroll 8
        for (int n = 0; n < BLOCKS; n++) {
            if (more)
                load(sums[t][n], c + t * PAIR + n * ROWS);
            else
                clear(sums[t][n]);
        }
    }
    for (int64_t s = 0; s < steps; s++, a += TILE, b += TILE) {
#pragma GCC unroll 4
        for (int64_t d = 0; d < 16; d++) {
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
#pragma GCC unroll 8
                for (int n = 0; n < BLOCKS; n++) Dot::add(sums[t][n], a[t * 16 + d], b + n * next_b + d * 16);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 8
        for (int n = 0; n < BLOCKS; n++) store(c + t * PAIR + n * ROWS, sums[t][n]);
}

// TOKENS of a tile at a time by all rows, or as many as are left.
template <class Dot, int TOKENS, int BLOCKS, class Vector, class Sum>
static inline void multiply_tokens(const uint32_t *tokens, const Operand &b, int n_b, int64_t steps, Sum *c, bool more) {
    if (n_b == 2 && BLOCKS == 2) {
        multiply_block<Dot, TOKENS, 2, Sum, Vector>(tokens, b.tiles, b.next, steps, c, more);
    } else {
        for (int n = 0; n < n_b; n++) multiply_block<Dot, TOKENS, 1, Sum, Vector>(tokens, b.tiles + n * b.next, 0, steps, c + n * ROWS, more);
    }
}

template <class Dot, int TOKENS, int BLOCKS, class Vector, class Sum>
static inline void multiply_tiles(const Operand &a, int n_a, const Operand &b, int n_b, int64_t steps, Sum *c, bool more) {
    constexpr int REST = 16 % TOKENS;
    for (int i = 0; i < n_a; i++, c += 16 * PAIR) {
        const uint32_t *tokens = a.tiles + i * a.next;
        for (int t = 0; t + TOKENS <= 16; t += TOKENS) multiply_tokens<Dot, TOKENS, BLOCKS, Vector>(tokens + t * 16, b, n_b, steps, c + t * PAIR, more);
        if (REST) multiply_tokens<Dot, REST ? REST : TOKENS, BLOCKS, Vector>(tokens + (16 - REST) * 16, b, n_b, steps, c + (16 - REST) * PAIR, more);
    }
}

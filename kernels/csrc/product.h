// The product by panels: decode some rows into a cache-sized panel, multiply all tokens by it, and go on. Included into a namespace for
// each instruction set, after what it needs: decode.h, gather.h, `transpose16`.
//
// Everything is counted in dwords, 32 bits that hold 1, 2 or 4 columns. Tokens come in tiles [16 tokens][16 dwords], rows of the matrix in
// tiles [16 dwords][16 rows]: what AMX multiplies, and what vectors over 16 rows multiply with one dword of a token at a time. Tiles
// of one operand lie one after another along the columns: `steps` tiles.
//
// `Kernel` says what a dword holds and how two tiles are multiplied:
//   PER_DWORD, PARTS        columns in a dword; tiles that a matrix is split into
//   EIGHT_BIT               whether tokens and rows are scaled to 8 bits
//   Sum                     float or int32_t
//   convert(row, scale, out)          16 · PER_DWORD columns to 16 dwords of every part
//   multiply(a, n_a, b, n_b, steps, c)    n_a tiles of tokens by n_b of rows into c, 32 × 32; tiles of an operand are `steps` · PARTS apart
//   begin(), end()          in every thread

enum { TILE = 256, PAIR = 32 };  // dwords of a tile; tokens and rows that are multiplied at once

static const int64_t PANEL_BYTES = 768 << 10;  // of the second-level cache
static const int64_t TOKEN_BYTES = 16 << 20;   // of tokens that are gathered at once

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Memory that a thread keeps for the next product: fresh pages would cost as much as the work on them.
struct Scratch {
    char *memory = nullptr;
    int64_t size = 0, used = 0;

    ~Scratch() { free(memory); }

    bool reserve(int64_t bytes) {
        used = 0;
        if (bytes <= size) return true;
        free(memory);
        memory = (char *)aligned_alloc(64, round_up(bytes, 64));
        size = memory ? bytes : 0;
        return memory != nullptr;
    }

    template <class T>
    T *take(int64_t n) {
        T *start = (T *)(memory + used);
        used += bytes_of<T>(n);
        return start;
    }

    template <class T>
    static int64_t bytes_of(int64_t n) { return round_up(n * sizeof(T), 64); }
};

static thread_local Scratch of_call, of_thread;

// Without NaN, floats of one sign are in the order of their bits, and integers are compared faster.
static float greatest_magnitude(const float *x, int64_t n) {
    uint32_t greatest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        greatest = bits > greatest ? bits : greatest;
    }
    float result;
    __builtin_memcpy(&result, &greatest, 4);
    return result;
}

template <class Kernel>
struct Product {
    static const int64_t STEP = 16 * Kernel::PER_DWORD;

    const sedaq_matrix &matrix;
    const sedaq_input &x;
    int64_t steps, tile_row, columns;  // tiles along the columns; dwords of them with all parts
    uint32_t *tokens = nullptr;
    float *token_scales = nullptr;

    Product(const sedaq_matrix &m, const sedaq_input &input) : matrix(m), x(input) {
        columns = round_up(m.n_in, STEP);
        steps = columns / STEP;
        tile_row = steps * Kernel::PARTS * TILE;
    }

    static float factor(float greatest) { return greatest > 0 ? 127 / greatest : 1; }

    float row_factor(int64_t row) const { return Kernel::EIGHT_BIT ? factor(matrix.row_maxima[row]) : 1; }

    // One tile of tokens from `first` on; those from `last` on are zero.
    void gather_tile(int64_t first, int64_t last, uint32_t *out, float *scales, float *row) const {
        for (int64_t t = 0; t < 16; t++) {
            float scale = 1;
            if (first + t < last) {
                gather_token(x, first + t, row);
                if (Kernel::EIGHT_BIT) scale = factor(greatest_magnitude(row, columns));
            } else {
                for (int64_t i = 0; i < columns; i++) row[i] = 0;
            }
            scales[t] = 1 / scale;
            uint32_t *to[Kernel::PARTS];
            for (int64_t s = 0; s < steps; s++) {
                for (int p = 0; p < Kernel::PARTS; p++) to[p] = out + (p * steps + s) * TILE + t * 16;
                Kernel::convert_token(row + s * STEP, scale, to);
            }
        }
    }

    // 16 rows of the matrix from `row` on, as tiles.
    void decode_tiles(int64_t row, uint32_t *out, int32_t *sums, const Chunk &chunk) const {
        float scales[ROWS];
        for (int64_t r = 0; r < ROWS; r++) scales[r] = row + r < matrix.n_out ? row_factor(row + r) : 1;
        for (int64_t r = 0; r < ROWS; r++) sums[r] = 0;
        const int64_t g = matrix.group_size, at_once = groups_a_chunk(g, STEP);
        for (int64_t first = 0; first * g < columns; first += at_once) {
            const int64_t last = smaller(first + at_once, matrix.n_groups);
            const int64_t end = smaller((first + at_once) * g, columns);
            decode(matrix, row, first, last, end - first * g, chunk);
            for (int64_t c = first * g; c < end; c += STEP) {
                uint32_t *to[Kernel::PARTS];
                for (int p = 0; p < Kernel::PARTS; p++) to[p] = out + (p * steps + c / STEP) * TILE;
                Kernel::convert_rows(chunk.values + c - first * g, chunk.stride, scales, to, sums);
            }
        }
    }

    // Rows that are decoded at once: what fits, and as many panels for every thread.
    int64_t panel_rows(int threads) const {
        int64_t fitting = PANEL_BYTES / (tile_row * 4) * ROWS;
        if (fitting < PAIR) fitting = PAIR;
        const int64_t rounds = (matrix.n_out + fitting * threads - 1) / (fitting * threads);
        return round_up((matrix.n_out + rounds * threads - 1) / (rounds * threads), PAIR);
    }

    // What is left to do with sums: scales of token and row, bias, and the dtype of x.
    void finish(const typename Kernel::Sum *c, int64_t token, int64_t n_tokens, int64_t first_token, int64_t row, const int32_t *sums, void *y, int64_t y_stride) const {
        const int64_t n_rows = smaller(PAIR, matrix.n_out - row);
        float scale[PAIR], bias[PAIR];
        for (int64_t n = 0; n < PAIR; n++) {
            scale[n] = n < n_rows ? matrix.scales[row + n] / row_factor(row + n) : 0;
            bias[n] = n < n_rows && matrix.bias ? matrix.bias[row + n] : 0;
        }
        for (int64_t t = 0; t < n_tokens; t++, c += PAIR) {
            const float of_token = token_scales[token - first_token + t];
            float out[PAIR];
            for (int64_t n = 0; n < PAIR; n++) out[n] = (float)(c[n] - (Kernel::EIGHT_BIT ? sums[n] : 0)) * (scale[n] * of_token) + bias[n];
            const int64_t at = (token + t) * y_stride + row;
            if (x.is_bf16)
                for (int64_t n = 0; n < n_rows; n++) ((uint16_t *)y)[at + n] = narrowed(out[n]);
            else if (n_rows == PAIR)
                for (int64_t n = 0; n < PAIR; n++) ((float *)y)[at + n] = out[n];
            else
                for (int64_t n = 0; n < n_rows; n++) ((float *)y)[at + n] = out[n];
        }
    }

    int run(void *y, int64_t y_stride, int threads) {
        const int64_t n_tokens = tokens_of(x), rows = panel_rows(threads);
        if (n_tokens == 0 || matrix.n_out == 0) return 0;
        const int64_t at_once = smaller(round_up(n_tokens, PAIR), round_up(TOKEN_BYTES / (tile_row * 4) * 16 + 1, PAIR));
        if (!of_call.reserve(Scratch::bytes_of<uint32_t>(at_once / 16 * tile_row) + Scratch::bytes_of<float>(at_once))) return 2;
        tokens = of_call.take<uint32_t>(at_once / 16 * tile_row);
        token_scales = of_call.take<float>(at_once);
        int failed = 0;
        for (int64_t first = 0; first < n_tokens; first += at_once) {
            const int64_t last = smaller(first + at_once, n_tokens);
#pragma omp parallel num_threads(threads)
            if (!work(first, last, rows, y, y_stride)) {
#pragma omp atomic write
                failed = 1;
            }
            if (failed) return 2;
        }
        return 0;
    }

    // What each thread does: its share of the tokens, then its share of the rows. False where it got no memory.
    bool work(int64_t first, int64_t last, int64_t rows, void *y, int64_t y_stride) const {
        typedef typename Kernel::Sum Sum;
        const int64_t chunk_stride = groups_a_chunk(matrix.group_size, STEP) * matrix.group_size + matrix.stride + 16;
        const bool ready = of_thread.reserve(
            Scratch::bytes_of<float>(columns) + Scratch::bytes_of<float>(ROWS * chunk_stride) + Scratch::bytes_of<uint32_t>(rows / ROWS * tile_row) +
            Scratch::bytes_of<int32_t>(rows) + Scratch::bytes_of<Sum>(PAIR * PAIR));
        float *row = of_thread.take<float>(columns);
        const Chunk chunk = {of_thread.take<float>(ROWS * chunk_stride), chunk_stride};
        uint32_t *panel = of_thread.take<uint32_t>(rows / ROWS * tile_row);
        int32_t *sums = of_thread.take<int32_t>(rows);
        Sum *c = of_thread.take<Sum>(PAIR * PAIR);

        Kernel::begin();
        if (ready) {
            for (int64_t i = matrix.n_in; i < columns; i++) row[i] = 0;
            for (int64_t i = 0; i < rows; i++) sums[i] = 0;  // `finish` also looks at rows and tokens that a last tile lacks
            for (int64_t i = 0; i < PAIR * PAIR; i++) c[i] = 0;
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < (last - first + 15) / 16; t++)
            if (ready) gather_tile(first + 16 * t, last, tokens + t * tile_row, token_scales + 16 * t, row);
#pragma omp for schedule(dynamic)
        for (int64_t r = 0; r < matrix.n_out; r += rows) {
            if (!ready) continue;
            const int64_t stop = smaller(r + rows, matrix.n_out);
            for (int64_t n = r; n < stop; n += ROWS) decode_tiles(n, panel + (n - r) / ROWS * tile_row, sums + n - r, chunk);
            for (int64_t t = first; t < last; t += PAIR) {
                for (int64_t n = r; n < stop; n += PAIR) {
                    Kernel::multiply(tokens + (t - first) / 16 * tile_row, t + 16 < last ? 2 : 1, panel + (n - r) / ROWS * tile_row,
                                     n + ROWS < stop ? 2 : 1, steps, c);
                    finish(c, t, smaller(PAIR, last - t), first, n, sums + n - r, y, y_stride);
                }
            }
        }
        Kernel::end();
        return ready;
    }
};

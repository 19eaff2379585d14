// The product by panels: decode some rows into a cache-sized panel, multiply all tokens by it, and go on. Included into a namespace for
// each instruction set, after decode.h and gather.h.
//
// Everything is counted in dwords, 32 bits that hold 1, 2 or 4 columns. Tokens come in tiles [16 tokens][16 dwords], rows of the matrix in
// tiles [16 dwords][16 rows]: what AMX multiplies, and what vectors over 16 rows multiply with one dword of a token at a time. Tiles
// of one operand lie one after another along the columns: `steps` tiles.
//
// `Kernel` says what a dword holds and how two tiles are multiplied:
//   PER_DWORD, PARTS                      columns in a dword; numbers that a value is split into
//   EIGHT_BIT, LIMIT, ROW_LIMIT           whether tokens and rows are scaled to 8 bits, and to which magnitudes
//   Sum, Weight                           float or int32_t; what rows are decoded to: float, or uint16_t that multipliers / 2¹⁵ bring to 8 bits
//   convert_token(row, scale, out)        16 · PER_DWORD columns of a token to 16 dwords of every part
//   convert_rows(values, …, out, sums)    as many columns of 16 rows to a tile of every part; what is to be taken off sums in the end
//   multiply(a, n_a, b, n_b, steps, c, more)    n_a tiles of tokens by n_b of rows to c, 32 × 32, in place of what is there or added to it
//   TAKES_BF16                            whether a tile's row is 32 columns in bfloat16, as they come
//   begin(), end()                        in every thread

enum { TILE = 256, PAIR = 32 };  // dwords of a tile; tokens and rows that are multiplied at once

// Tiles of one kind: from one part to the next, and from 16 tokens or rows to the next 16.
struct Operand {
    const uint32_t *tiles;
    int64_t part, next;
};

// Processors with registers of 64 bytes have a second-level cache of a megabyte or more, others half of one.
static const int64_t PANEL_BYTES = (REGISTER == 64 ? 576 : 256) << 10;  // of that cache
static const int64_t PANEL_ROWS = REGISTER == 64 ? 64 : 128;            // for fewer, tokens would be read too often: then columns are cut into blocks
static const int64_t TOKEN_BYTES = (REGISTER == 64 ? 16 : 5) << 20;     // of tokens that are gathered at once
static const int64_t TOKEN_STEPS = 8;  // tiles of 32 tokens that stay in the first-level cache

// Without NaN, floats of one sign are in the order of their bits, and integers are compared faster.
static float max_magnitude(const float *x, int64_t n) {
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
    typedef typename Kernel::Weight Weight;
    static const int64_t STEP = 16 * Kernel::PER_DWORD;

    const sedaq_matrix &matrix;
    const sedaq_input &x;
    int64_t columns, steps;              // padded columns, and tiles along them
    int64_t at_once;                     // groups that are decoded at once: whole tiles
    int64_t n_blocks, block_steps;       // of columns that a panel holds
    int64_t token_tiles, panel_tiles;    // dwords of 16 tokens, and of 16 rows in a panel
    int64_t units = 0;                   // tiles' rows that the channels of a place take; 0 where images are not converted beforehand
    uint32_t *tokens = nullptr, *images = nullptr;
    float *token_scales = nullptr;
    float greatest = 0;                  // unscaled weight, where rows are decoded to 16 bits
    const Weight *codebooks = nullptr;

    Product(const sedaq_matrix &m, const sedaq_input &input) : matrix(m), x(input) {
        columns = round_up(m.n_in, STEP);
        steps = columns / STEP;
        token_tiles = steps * Kernel::PARTS * TILE;
        at_once = groups_a_chunk(m.group_size, STEP);
        const int64_t chunk_steps = at_once * m.group_size / STEP, bytes = 4 * Kernel::PARTS * TILE / ROWS;  // of a row and step
        n_blocks = 1 + PANEL_ROWS * steps * bytes / PANEL_BYTES;
        block_steps = round_up((steps + n_blocks - 1) / n_blocks, chunk_steps);
        n_blocks = (steps + block_steps - 1) / block_steps;
        panel_tiles = block_steps * Kernel::PARTS * TILE;
        units = units_of_images();
        for (int64_t r = 0; r < m.n_out && Kernel::EIGHT_BIT; r++) greatest = greatest < m.row_maxima[r] ? m.row_maxima[r] : greatest;
    }

    // Where several taps see the same places, and every run is whole rows of tiles, places are converted once and then copied. 8-bit tokens
    // have a scale each, so that this is not for them.
    int64_t units_of_images() const {
        int64_t channels = 0;
        for (int32_t i = 0; i < x.n_runs; i++) {
            const sedaq_run &run = x.runs[i];
            if (run.first % STEP || run.length % STEP || run.channel % STEP || run.apart != 1) return 0;
            if (channels < run.channel + run.length) channels = run.channel + run.length;
        }
        return Kernel::EIGHT_BIT || x.n_runs < 2 ? 0 : channels / STEP;
    }

    void convert_place(int64_t number, float *row) const {
        int64_t rest = number, at = 0;
        for (int d = 2; d >= 0; d--) {
            at += rest % x.size[d] * x.stride[d];
            rest /= x.size[d];
        }
        copy_channels(x, at + rest * x.image_stride, units * STEP, row);
        for (int64_t u = 0; u < units; u++) {
            uint32_t *to[Kernel::PARTS];
            for (int p = 0; p < Kernel::PARTS; p++) to[p] = images + ((number * Kernel::PARTS + p) * units + u) * 16;
            Kernel::convert_token(row + u * STEP, 1, to);
        }
    }

    // As gather_tile, from converted places.
    void copy_tile(int64_t first, int64_t last, uint32_t *out, float *scales) const {
        for (int64_t t = 0; t < 16; t++) {
            scales[t] = 1;
            const Token token(x, first + t);
            for (int32_t i = 0; i < x.n_runs; i++) {
                const sedaq_run &run = x.runs[i];
                int64_t at[3];
                const bool inside = first + t < last && token.sees(x, run.tap, at);
                const int64_t place = inside ? ((token.image * x.size[0] + at[0]) * x.size[1] + at[1]) * x.size[2] + at[2] : 0;
                for (int p = 0; p < Kernel::PARTS; p++) {
                    const uint32_t *from = images + ((place * Kernel::PARTS + p) * units + run.channel / STEP) * 16;
                    uint32_t *to = out + (p * steps + run.first / STEP) * TILE + t * 16;
                    for (int64_t u = 0; u < run.length / STEP; u++, from += 16, to += TILE) {
                        if (inside)
                            __builtin_memcpy(to, from, 64);
                        else
                            __builtin_memset(to, 0, 64);
                    }
                }
            }
        }
    }

    static float factor(float greatest) { return greatest < 1e-30f ? 1 : Kernel::LIMIT / greatest; }  // NaN stays NaN

    // The greatest weight is GREATEST, and that of a row then ROW_LIMIT or a little less.
    static constexpr float GREATEST = 32000;

    int16_t multiplier(int64_t row) const {
        const float wanted = 32768 * Kernel::ROW_LIMIT / GREATEST * greatest / matrix.row_maxima[row];
        return wanted < 32767 ? (int16_t)wanted : 32767;  // rows of zeros, too
    }

    // 8-bit weights over weights.
    float row_factor(int64_t row) const {
        if constexpr (Kernel::EIGHT_BIT) return greatest > 0 ? multiplier(row) * GREATEST / (32768 * greatest) : 1;
        return 1;
    }

    // As they are, or in 16 bits, where partial sums may wrap around: whole ones fit.
    void prepare_books(float *) { codebooks = (const Weight *)matrix.codebooks; }
    void prepare_books(uint16_t *out) {
        const float by = greatest > 0 ? GREATEST / greatest : 0, most = 1 << 30;  // what is longer is no part of any sum
        for (int64_t i = 0; i < book_numbers(); i++) {
            const float value = matrix.codebooks[i] * by;
            out[i] = (uint16_t)(int32_t)((value > most ? most : value < -most ? -most : value) + (value < 0 ? -0.5f : 0.5f));
        }
        codebooks = (const Weight *)out;
    }

    int64_t book_numbers() const { return Kernel::EIGHT_BIT ? (int64_t)matrix.n_codebooks * matrix.n_entries * matrix.stride : 0; }

    // One tile of tokens from `first` on; those from `last` on are zero.
    void gather_tile(int64_t first, int64_t last, uint32_t *out, float *scales, float *row) const {
        for (int64_t t = 0; t < 16; t++) {
            float scale = 1;
            const uint16_t *narrow = Kernel::TAKES_BF16 && first + t < last ? ready_token<uint16_t>(x, first + t, columns) : nullptr;
            if (narrow) {
                scales[t] = 1;
                for (int64_t s = 0; s < steps; s++) __builtin_memcpy(out + s * TILE + t * 16, narrow + s * STEP, 64);
                continue;
            }
            const float *values = first + t < last ? ready_token<float>(x, first + t, columns) : nullptr;
            if (!values && first + t < last)
                gather_token(x, first + t, row);
            else
                for (int64_t i = 0; i < columns && !values; i++) row[i] = 0;
            if (!values) values = row;
            if constexpr (Kernel::EIGHT_BIT) scale = factor(max_magnitude(values, columns));
            scales[t] = 1 / scale;
            uint32_t *to[Kernel::PARTS];
            for (int64_t s = 0; s < steps; s++) {
                for (int p = 0; p < Kernel::PARTS; p++) to[p] = out + (p * steps + s) * TILE + t * 16;
                Kernel::convert_token(values + s * STEP, scale, to);
            }
        }
    }

    // 16 rows of the matrix from `row` on, as tiles of one block of columns; `sums` goes on from the block before.
    void decode_tiles(int64_t row, int64_t block, uint32_t *out, int32_t *sums, const Chunk<Weight> &chunk) const {
        int16_t multipliers[ROWS];
        if constexpr (Kernel::EIGHT_BIT)
            for (int64_t r = 0; r < ROWS; r++) multipliers[r] = row + r < matrix.n_out ? multiplier(row + r) : 0;
        for (int64_t r = 0; r < ROWS && block == 0; r++) sums[r] = 0;
        const int64_t g = matrix.group_size, start = block * block_steps * STEP, stop = smaller(start + block_steps * STEP, columns);
        for (int64_t from = start; from < stop; from += at_once * g) {
            const int64_t end = smaller(from + at_once * g, stop);
            decode(matrix, codebooks, row, from / g, smaller(from / g + at_once, matrix.n_groups), end - from, chunk);
            for (int64_t c = from; c < end; c += STEP) {
                uint32_t *to[Kernel::PARTS];
                for (int p = 0; p < Kernel::PARTS; p++) to[p] = out + (p * block_steps + (c - start) / STEP) * TILE;
                Kernel::convert_rows(chunk.values + c - from, chunk.stride, multipliers, to, sums);
            }
        }
    }

    // Rows that are decoded at once: what fits, and as many panels for every thread.
    int64_t panel_rows(int threads) const {
        int64_t fitting = PANEL_BYTES / (panel_tiles * 4) * ROWS;
        if (fitting < PAIR) fitting = PAIR;
        const int64_t rounds = (matrix.n_out + fitting * threads - 1) / (fitting * threads);
        return round_up((matrix.n_out + rounds * threads - 1) / (rounds * threads), PAIR);
    }

    // What is left to do with sums: scales of token and row, bias, and the dtype of x.
    void finish(const typename Kernel::Sum *c, int64_t token, int64_t n_tokens, int64_t first_token, int64_t row, const int32_t *sums, const float *row_scales,
                void *y, int64_t y_stride) const {
        const int64_t n_rows = smaller(PAIR, matrix.n_out - row);
        float bias[PAIR];
        for (int64_t n = 0; n < PAIR; n++) bias[n] = n < n_rows && matrix.bias ? matrix.bias[row + n] : 0;
        for (int64_t t = 0; t < n_tokens; t++, c += PAIR) {
            const float of_token = token_scales[token - first_token + t];
            float out[PAIR];
            for (int64_t n = 0; n < PAIR; n++) out[n] = (float)(c[n] - (Kernel::EIGHT_BIT ? sums[n] : 0)) * (row_scales[n] * of_token) + bias[n];
            const int64_t at = (token + t) * y_stride + row;
            if (n_rows < PAIR) {
                for (int64_t n = 0; n < n_rows; n++) put(x, y, at + n, out[n]);
            } else if (x.is_bf16) {
                for (int64_t n = 0; n < PAIR; n++) ((uint16_t *)y)[at + n] = narrowed(out[n]);
            } else {
                for (int64_t n = 0; n < PAIR; n++) ((float *)y)[at + n] = out[n];
            }
        }
    }

    int run(void *y, int64_t y_stride, int threads) {
        const int64_t n_tokens = tokens_of(x), rows = panel_rows(threads);
        if (n_tokens == 0 || matrix.n_out == 0) return 0;
        const int64_t gathered = smaller(round_up(n_tokens, PAIR), round_up(TOKEN_BYTES / (token_tiles * 4) * 16 + 1, PAIR));
        const int64_t n_converted = units ? places_of(x) * Kernel::PARTS * units * 16 : 0;
        if (!of_call.reserve(Scratch::bytes_of<uint32_t>(gathered / 16 * token_tiles) + Scratch::bytes_of<float>(gathered) +
                             Scratch::bytes_of<uint32_t>(n_converted) + Scratch::bytes_of<Weight>(book_numbers())))
            return 2;
        prepare_books(of_call.take<Weight>(book_numbers()));
        images = of_call.take<uint32_t>(n_converted);
        tokens = of_call.take<uint32_t>(gathered / 16 * token_tiles);
        token_scales = of_call.take<float>(gathered);
        int failed = 0;
        for (int64_t first = 0; first < n_tokens; first += gathered) {
            const int64_t last = smaller(first + gathered, n_tokens);
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
        const int64_t chunk_stride = at_once * matrix.group_size + matrix.stride + 16;
        // Sums are kept from one block of columns to the next.
        const int64_t n_pairs = (n_blocks == 1 ? 1 : (last - first + PAIR - 1) / PAIR) * (rows / PAIR);
        const bool ready = of_thread.reserve(
            Scratch::bytes_of<float>(columns) + Scratch::bytes_of<Weight>(ROWS * chunk_stride) + Scratch::bytes_of<uint32_t>(rows / ROWS * panel_tiles) +
            Scratch::bytes_of<int32_t>(rows) + Scratch::bytes_of<float>(rows) + Scratch::bytes_of<Sum>(n_pairs * PAIR * PAIR));
        float *row = of_thread.take<float>(columns);
        const Chunk<Weight> chunk = {of_thread.take<Weight>(ROWS * chunk_stride), chunk_stride};
        uint32_t *panel = of_thread.take<uint32_t>(rows / ROWS * panel_tiles);
        int32_t *sums = of_thread.take<int32_t>(rows);
        float *row_scales = of_thread.take<float>(rows);
        Sum *c = of_thread.take<Sum>(n_pairs * PAIR * PAIR);

        Kernel::begin();
        if (ready) {
            for (int64_t i = matrix.n_in; i < columns; i++) row[i] = 0;
            for (int64_t i = 0; i < rows; i++) row_scales[i] = sums[i] = 0;  // `finish` also looks at rows and tokens that a last tile lacks
            for (int64_t i = 0; i < n_pairs * PAIR * PAIR; i++) c[i] = 0;
        }
        if (units && first == 0) {
#pragma omp for schedule(static)
            for (int64_t place = 0; place < places_of(x); place++)
                if (ready) convert_place(place, row);
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < (last - first + 15) / 16; t++) {
            if (ready && units)
                copy_tile(first + 16 * t, last, tokens + t * token_tiles, token_scales + 16 * t);
            else if (ready)
                gather_tile(first + 16 * t, last, tokens + t * token_tiles, token_scales + 16 * t, row);
        }
#pragma omp for schedule(dynamic)
        for (int64_t r = 0; r < matrix.n_out; r += rows) {
            if (!ready) continue;
            const int64_t stop = smaller(r + rows, matrix.n_out);
            for (int64_t n = r; n < stop; n++) row_scales[n - r] = matrix.scales[n] / row_factor(n);
            for (int64_t block = 0; block < n_blocks; block++) {
                for (int64_t n = r; n < stop; n += ROWS) decode_tiles(n, block, panel + (n - r) / ROWS * panel_tiles, sums + n - r, chunk);
                multiply_panel(first, last, r, stop, block, panel, sums, row_scales, c, y, y_stride);
            }
        }
        Kernel::end();
        return ready;
    }

    // A share of the tokens' tiles that are wanted next: processors do not foresee the order in which vectors go through tiles.
    void fetch_ahead(const uint32_t *next, int64_t n, int64_t share, int64_t n_shares) const {
        for (int64_t i = n * share / n_shares; i < n * (share + 1) / n_shares; i += 16) {
            __builtin_prefetch(next + i);
            __builtin_prefetch(next + token_tiles + i);
        }
    }

    // All tokens by one panel: some of 32 tokens' tiles at a time by all its rows.
    void multiply_panel(int64_t first, int64_t last, int64_t r, int64_t stop, int64_t block, const uint32_t *panel, const int32_t *sums,
                        const float *row_scales, typename Kernel::Sum *c, void *y, int64_t y_stride) const {
        const int64_t from = block * block_steps, n_steps = smaller(block_steps, steps - from);
        const int64_t kept = TOKEN_STEPS / Kernel::PARTS;
        for (int64_t t = first; t < last; t += PAIR) {
            for (int64_t s = 0; s < n_steps; s += kept) {
                const Operand a = {tokens + (t - first) / 16 * token_tiles + (from + s) * TILE, steps * TILE, token_tiles};
                const int64_t after = s + kept < n_steps ? (t - first) / 16 * token_tiles + (from + s + kept) * TILE : (t + PAIR - first) / 16 * token_tiles + from * TILE;
                for (int64_t n = r; n < stop; n += PAIR) {
                    if (REGISTER < 64) fetch_ahead(tokens + after, kept * TILE, (n - r) / PAIR, (stop - r + PAIR - 1) / PAIR);
                    const Operand b = {panel + (n - r) / ROWS * panel_tiles + s * TILE, block_steps * TILE, panel_tiles};
                    Kernel::multiply(a, t + 16 < last ? 2 : 1, b, n + ROWS < stop ? 2 : 1, smaller(kept, n_steps - s), c + (n - r) * PAIR, block + s > 0);
                }
            }
            for (int64_t n = r; n < stop && block == n_blocks - 1; n += PAIR)
                finish(c + (n - r) * PAIR, t, smaller(PAIR, last - t), first, n, sums + n - r, row_scales + n - r, y, y_stride);
            if (n_blocks > 1) c += (stop - r + PAIR - 1) / PAIR * PAIR * PAIR;
        }
    }
};

// The product by byte shuffles: one looks as many rows up in a table of 16 entries (byte_tables.h) as a vector has bytes. Codes are
// transposed for it, some at a time for many tokens. Known from T-MAC, bitnet.cpp and Vec-LUT, whose tables hold products of a few weights
// of a few bits; here an entry is the product of a whole group of inputs with a codeword.
//
// `Bytes` says what a vector of bytes is:
//   Vector, Words, Dwords            of bytes; of 16 and 32 bits
//   table(at)                        16 entries from memory
//   lookup(table, indices)           its entries at indices below 16
//   rows(at, stride)                 16 bytes from each of as many addresses as fit
//   low(a, b), high(a, b)            bytes of a and b in turn, within lanes of 16 bytes
//   high_bytes(words)                of 16 bits each: by multiplication, for shuffles keep the units of shifts busy
//   BLOCKS                           vectors of rows at once: what fits registers and the first-level cache

enum { TILE_TOKENS = 128, FEW_TOKENS = 8 };    // of an item of work; of which codes are read but once
static const int64_t TABLES_BYTES = 8 << 20;   // of tokens whose tables are held at once

template <class Bytes>
struct ShuffleProduct {
    typedef typename Bytes::Vector Vector;
    typedef typename Bytes::Words Words;
    typedef typename Bytes::Dwords Dwords;
    enum { LANES = sizeof(Vector), QUARTER = LANES / 4, BLOCKS = Bytes::BLOCKS };

    const sedaq_matrix &m;
    const sedaq_input &x;
    TableBuilder builder;
    int64_t n_codes, n_tokens, tile, batch;  // codes of a row; tokens of an item of work, and whose tables are held
    int64_t blocks, shares, rows;            // vectors of rows, items of work that share them, and rows of an item at most
    uint8_t *tables = nullptr;   // (blocks of pairs, batch, PAIRS, 32)
    float *units = nullptr;
    int32_t *offsets = nullptr;

    ShuffleProduct(const sedaq_matrix &matrix, const sedaq_input &input) : m(matrix), x(input), builder(matrix), n_tokens(tokens_of(input)) {
        n_codes = m.n_groups * m.n_codebooks;
        blocks = (m.n_out + LANES - 1) / LANES;
    }

    static bool serves(const sedaq_matrix &m) {
        return m.code_bytes == 1 && (m.n_entries <= 16 || (m.structure == SEDAQ_HIERARCHICAL && (m.n_entries == 64 || m.n_entries == 256)));
    }

    // Work for all threads: smaller items where there are few.
    void divide(int64_t of_token, int threads) {
        batch = smaller(n_tokens, round_up(TABLES_BYTES / of_token + 1, TILE_TOKENS));
        tile = smaller(batch, TILE_TOKENS);
        shares = (blocks + BLOCKS - 1) / BLOCKS;
        while (tile > 16 && (batch + tile - 1) / tile * shares < 2 * threads) tile = (tile + 1) / 2;
        if ((batch + tile - 1) / tile * shares < threads) shares = smaller(blocks, threads);
        rows = (blocks + shares - 1) / shares * LANES;
    }

    int run(void *y, int64_t y_stride, int threads) {
        if (n_tokens == 0 || m.n_out == 0) return 0;
        const int64_t of_token = round_up(builder.n_pairs, PAIRS) * PAIR_BYTES;
        divide(of_token, threads);
        if (!of_call.reserve(Scratch::bytes_of<int16_t>(builder.word_numbers()) + Scratch::bytes_of<uint8_t>(batch * of_token) +
                             Scratch::bytes_of<float>(batch) + Scratch::bytes_of<int32_t>(batch)))
            return 2;
        builder.prepare(of_call.take<int16_t>(builder.word_numbers()));
        tables = of_call.take<uint8_t>(batch * of_token);
        units = of_call.take<float>(batch);
        offsets = of_call.take<int32_t>(batch);
        int failed = 0;
        for (int64_t first = 0; first < n_tokens && !failed; first += batch) {
#pragma omp parallel num_threads(threads)
            if (!work(first, smaller(batch, n_tokens - first), threads, y, y_stride)) {
#pragma omp atomic write
                failed = 2;
            }
        }
        return failed;
    }

    // What each thread does: its share of the tables, then of tiles of tokens by some rows. False where it got no memory.
    bool work(int64_t first, int64_t n, int threads, void *y, int64_t y_stride) const {
        const int64_t columns = m.n_groups * m.group_size, index_bytes = rows * 2 * PAIRS;
        const bool ready = of_thread.reserve(
            Scratch::bytes_of<float>(columns) + Scratch::bytes_of<int16_t>(builder.padded) + Scratch::bytes_of<int16_t>(builder.n_tables * 16) +
            Scratch::bytes_of<int32_t>(builder.n_tables) + Scratch::bytes_of<uint8_t>(index_bytes) + Scratch::bytes_of<int32_t>(tile * rows) +
            Scratch::bytes_of<float>(rows));
        float *row = of_thread.take<float>(columns);
        int16_t *of_row = of_thread.take<int16_t>(builder.padded), *entries = of_thread.take<int16_t>(builder.n_tables * 16);
        int32_t *least = of_thread.take<int32_t>(builder.n_tables);
        uint8_t *indices = of_thread.take<uint8_t>(index_bytes);
        int32_t *sums = of_thread.take<int32_t>(tile * rows);
        float *bias = of_thread.take<float>(rows);
        if (ready) {
            __builtin_memset(row, 0, columns * sizeof *row);
            __builtin_memset(of_row, 0, builder.padded * sizeof *of_row);
            __builtin_memset(entries, 0, builder.n_tables * 16 * sizeof *entries);
            __builtin_memset(bias, 0, rows * sizeof *bias);
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < n; t++)
            if (ready) build_tables(first, t, row, of_row, entries, least);
        const int64_t tiles = (n + tile - 1) / tile;
        const int64_t at_once = n > FEW_TOKENS ? 1 : (shares + threads - 1) / threads;  // codes of few tokens are fetched ahead, in order
#pragma omp for schedule(dynamic, at_once)
        for (int64_t item = 0; item < tiles * shares; item++) {
            if (!ready) continue;
            const int64_t t = item / shares * tile, start = item % shares * blocks / shares * LANES;
            const int64_t n_rows = smaller((item % shares + 1) * blocks / shares * LANES, m.n_out) - start;
            sum_rows<BLOCKS>((n_rows + LANES - 1) / LANES, t, smaller(tile, n - t), start, indices, sums);
            finish(first, t, smaller(tile, n - t), start, n_rows, sums, bias, y, y_stride);
        }
        return ready;
    }

    void build_tables(int64_t first, int64_t t, float *row, int16_t *of_row, int16_t *entries, int32_t *least) const {
        const float *values = ready_token<float>(x, first + t, m.n_groups * m.group_size);
        if (!values) gather_token(x, first + t, row);
        const float scale = builder.convert(values ? values : row, of_row) * builder.word_scale / (float)(1 << builder.shift);
        builder.multiply_all(of_row, entries);
        const float packed = builder.pack(entries, least, tables + t * PAIRS * PAIR_BYTES, batch * PAIRS * PAIR_BYTES, offsets + t);
        units[t] = scale == 0 ? 0 : 1 / (scale * packed);
    }

    // 16 codes of LANES rows, from (row, code) to (code, row): four times bytes of vectors half of all apart, in turn. Byte 4 i + q of a
    // code's vector is row QUARTER q + i, so that sums come in order (`add`).
    static inline void transpose(const uint8_t *codes, int64_t stride, Vector *out) {
        Vector other[16];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++, codes += stride)
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) out[4 * i + q] = Bytes::rows(codes + q * QUARTER * stride, 4 * stride);
#pragma GCC unroll 4
        for (int round = 0; round < 4; round++) {
            Vector *from = round % 2 ? other : out, *to = round % 2 ? out : other;
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                to[2 * i] = Bytes::low(from[i], from[i + 8]);
                to[2 * i + 1] = Bytes::high(from[i], from[i + 8]);
            }
        }
    }

    // Indices into tables of n pairs from `pair` on, LANES rows from `row` on; those of pairs are NEXT bytes apart.
    template <int64_t NEXT>
    void index(int64_t row, int64_t pair, int64_t n, uint8_t *out) const {
        const int64_t of_pair = builder.split ? 1 : 2, first = pair * of_pair, stop = smaller(first + n * of_pair, n_codes);
        const int64_t n_rows = smaller(LANES, m.n_out - row), readable = (m.n_out - row) * n_codes;
        const uint8_t *codes = (const uint8_t *)m.codes + row * n_codes;
        for (int64_t c = first; c < stop; c += 16, out += (builder.split ? 16 : 8) * NEXT) {
            for (int64_t i = 0; i < 16 * LANES; i += 64) __builtin_prefetch(codes + rows * n_codes + c * LANES + i);
            uint8_t tail[LANES * 16];
            const bool whole = n_rows == LANES && (LANES - 1) * n_codes + c + 16 <= readable;
            if (!whole) copy_tail(codes + c, n_rows, smaller(16, stop - c), tail);
            Vector found[16];
            transpose(whole ? codes + c : tail, whole ? n_codes : 16, found);
            if (builder.split && builder.half == 8)
                store_halves<NEXT, 3>(found, out);
            else if (builder.split)
                store_halves<NEXT, 4>(found, out);
            else
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) store(out + i / 2 * NEXT + i % 2 * LANES, found[i]);
        }
    }

    template <int64_t NEXT, int BITS>
    static inline void store_halves(const Vector *codes, uint8_t *out) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            store(out + i * NEXT, (Vector)((Words)codes[i] >> BITS) & (uint8_t)((1 << BITS) - 1));
            store(out + i * NEXT + LANES, codes[i] & (uint8_t)((1 << BITS) - 1));
        }
    }

    // Codes beyond the last row and the last code must not be read.
    [[gnu::noinline]] void copy_tail(const uint8_t *codes, int64_t n_rows, int64_t n, uint8_t *out) const {
        __builtin_memset(out, 0, LANES * 16);
        for (int64_t r = 0; r < n_rows; r++) __builtin_memcpy(out + 16 * r, codes + r * n_codes, n);
    }

    // Adds to sums of N vectors of rows the entries of n pairs, at most 255: 8 bits of each pair, 16 of all of them. Sums of words wrap
    // around, but with the sums of their high bytes those of their low bytes are known.
    template <int N>
    static void add(const uint8_t *indices, const uint8_t *tables, int64_t n, bool more, int32_t *sums) {
        Words all[N] = {}, high[N] = {};
        for (int64_t p = 0; p < n; p++, indices += N * 2 * LANES, tables += PAIR_BYTES) {
            const Vector first = Bytes::table(tables), second = Bytes::table(tables + 16);
#pragma GCC unroll 5
            for (int b = 0; b < N; b++) {
                Vector of_first, of_second;
                load(of_first, indices + 2 * b * LANES);
                load(of_second, indices + (2 * b + 1) * LANES);
                const Words sum = (Words)(Bytes::lookup(first, of_first) + Bytes::lookup(second, of_second));
                all[b] += sum;
                high[b] += Bytes::high_bytes(sum);
            }
        }
#pragma GCC unroll 5
        for (int b = 0; b < N; b++) {
            const Words odd = high[b], even = all[b] - (odd << 8);
            const Dwords parts[4] = {(Dwords)even & 0xffff, (Dwords)odd & 0xffff, (Dwords)even >> 16, (Dwords)odd >> 16};
            for (int q = 0; q < 4; q++, sums += QUARTER) {
                Dwords sum = {};
                if (more) load(sum, sums);
                store(sums, sum + parts[q]);
            }
        }
    }

    // A tile of tokens from t on by N vectors of rows: indices of a block of pairs stay in the first-level cache, and tables stream.
    template <int N>
    void sum(int64_t t, int64_t n_tokens, int64_t start, uint8_t *indices, int32_t *sums) const {
        for (int64_t p = 0; p < builder.n_pairs; p += PAIRS) {
            const int64_t n = smaller(PAIRS, builder.n_pairs - p);
            for (int64_t b = 0; b < N; b++) index<N * 2 * LANES>(start + b * LANES, p, n, indices + b * 2 * LANES);
            const uint8_t *of_tokens = tables + (p * batch + t * PAIRS) * PAIR_BYTES;
            for (int64_t u = 0; u < n_tokens; u++, of_tokens += PAIRS * PAIR_BYTES) add<N>(indices, of_tokens, n, p > 0, sums + u * rows);
        }
    }

    template <int N>
    void sum_rows(int64_t n, int64_t t, int64_t n_tokens, int64_t start, uint8_t *indices, int32_t *sums) const {
        if constexpr (N > 1)
            if (n < N) return sum_rows<N - 1>(n, t, n_tokens, start, indices, sums);
        sum<N>(t, n_tokens, start, indices, sums);
    }

    // `bias` holds zeros where the matrix has none.
    void finish(int64_t first, int64_t t, int64_t n_tokens, int64_t start, int64_t n_rows, const int32_t *sums, float *bias, void *y,
                int64_t y_stride) const {
        if (m.bias) __builtin_memcpy(bias, m.bias + start, n_rows * sizeof *bias);
        for (int64_t u = 0; u < n_tokens; u++, sums += rows) {
            const float unit = units[t + u], *scales = m.scales + start;
            const int32_t offset = offsets[t + u];
            const int64_t at = (first + t + u) * y_stride + start;
            if (x.is_bf16)
                for (int64_t r = 0; r < n_rows; r++) ((uint16_t *)y)[at + r] = narrowed((float)(sums[r] - offset) * (unit * scales[r]) + bias[r]);
            else
                for (int64_t r = 0; r < n_rows; r++) ((float *)y)[at + r] = (float)(sums[r] - offset) * (unit * scales[r]) + bias[r];
        }
    }
};

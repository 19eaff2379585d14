// The two passes over all groups of every row: codes from nothing with error feedback, and codes anew given all others.
//
// Rows are worked on in units of their scale, x = w / s, so that energies need no scale; a row of scale zero is taken as zeros.

// What a window's groups need beside its packed columns.
struct Tables {
    const int64_t g, m, k_padded, g_padded, stride;  // from a row of `square` to the next

    Tables(const Codebooks &books, int64_t columns) : g(books.g), m(books.m), k_padded(books.k_padded), g_padded(books.g_padded), stride(round_up(columns, WIDE) + WIDE) {}
    int64_t group_floats() const { return 2 * g * g_padded + m * k_padded; }
    int64_t floats(int64_t columns) const { return columns * stride + columns / g * group_floats() + LANES; }
    float *square(const Window &w) const { return w.tables; }
    float *group(const Window &w, int64_t p) const { return w.tables + w.width() * stride + p * group_floats(); }
    Group at(const Window &w, int64_t p) const {
        const float *here = group(w, p);
        return {here, here + g * g_padded, here + 2 * g * g_padded};
    }

    // With feedback the matrix is the factor C, and offset · Cᵀ is linear; without, H itself, and what the group has now is taken back.
    void prepare(const sedaq_part &part, const Codebooks &books, int64_t s, const Window &w, int64_t p, bool feedback) const {
        const int64_t a = p * g;
        float *rows = square(w) + a * stride, *to_linear = group(w, p), *block = to_linear + g * g_padded, *own = block + g * g_padded;
        copy_columns(part, s, w.start, w.stop, w.start + a, w.start + a + g, rows, stride);
        __builtin_memset(to_linear, 0, (size_t)(2 * g * g_padded) * sizeof(float));
        for (int64_t i = 0; i < g; i++)
            for (int64_t j = 0; j < g; j++) {
                const float *first = rows + i * stride + a, *second = rows + j * stride + a;
                float sum = feedback ? 0 : first[j];
                for (int64_t l = 0; l < g && feedback; l++) sum = multiply_add(first[l], second[l], sum);
                block[i * g_padded + j] = sum;
                to_linear[j * g_padded + i] = feedback ? first[j] : -first[j];
            }
        for (int64_t book = 0; book < m; book++) books.own_energies(book, block, g_padded, own + book * k_padded);
    }
};

static inline float in_units(float weight, float scale) { return scale != 0 ? weight / scale : 0; }

struct Pass {
    const sedaq_part &part;
    const Codebooks &books;
    const Tables tables;
    const int64_t n_groups, most, window_groups, stride, thread_bytes;
    Memory<float> errors;  // (S, R, n): u − x, and −x where no codes are yet
    Memory<char> memory;   // (threads, thread_bytes)

    Pass(const sedaq_part &of, const Codebooks &all, int64_t within, int64_t across, int threads)
        : part(of), books(all), tables(all, window_columns(of)), n_groups(of.n_columns / all.g),
          most(Search::hypotheses_held(all, within, across, window_columns(of) / all.g)), window_groups(window_columns(of) / all.g), stride(tables.stride),
          thread_bytes(Search::bytes(all, most) + own_bytes(across)), errors(of.n_conv_groups * of.n_rows * of.n_columns), memory(threads * thread_bytes) {}

    int64_t own_bytes(int64_t across) const {
        const int64_t items = TOGETHER * most;
        return 2 * Arena::bytes_of<float>(across > 1 ? items * stride : 0) + Arena::bytes_of<float>(items * books.g_padded) + Arena::bytes_of<float>(items) +
               Arena::bytes_of<float>(TOGETHER * books.g_padded) + Arena::bytes_of<int32_t>(window_groups * items) +
               Arena::bytes_of<int32_t>(window_groups * items * books.m) + 4 * Arena::bytes_of<float *>(items) + 64;
    }
    bool ok() const { return errors.ok() && memory.ok(); }
    Arena arena(int thread) const { return {memory.data + thread * thread_bytes}; }
    int64_t table_floats(int64_t columns) const { return tables.floats(columns); }
    float *error_row(int64_t s, int64_t r) const { return errors.data + (s * part.n_rows + r) * part.n_columns; }
    const float *weight_row(int64_t s, int64_t r) const { return part.weights + (s * part.n_rows + r) * part.n_columns; }
    float scale(int64_t s, int64_t r) const { return part.scales[s * part.n_rows + r]; }
    int64_t *codes_of(int64_t s, int64_t r) const { return part.codes + (s * part.n_rows + r) * n_groups * books.m; }

    // Columns of error = u − x, u by the codes as they are; without codes, −x.
    void set_errors(int64_t s, int64_t r, int64_t start, int64_t stop, bool coded) {
        float *error = error_row(s, r);
        const float *w = weight_row(s, r), row_scale = scale(s, r);
        for (int64_t a = start; a < stop && coded; a += books.g) books.add_words(codes_of(s, r) + a / books.g * books.m, error + a);
        for (int64_t i = start; i < stop; i++) error[i] = (coded ? error[i] : 0) - in_units(w[i], row_scale);
    }
};

// -- from nothing ------------------------------------------------------------------------------------------------------------------------

// What errors before the next group, and the weights from it on, bring into its columns and all after it, is carried along.
struct Encode : Pass {
    const int64_t within, across;
    Encode(const sedaq_part &of, const Codebooks &all, int64_t kept_within, int64_t kept_across, int threads)
        : Pass(of, all, kept_within, kept_across, threads), within(kept_within), across(kept_across) {}

    void prepare(int64_t s, const Window &w, int64_t p) { tables.prepare(part, books, s, w, p, true); }

    const float *inputs(int64_t s, const Window &w, const Rows &rows) {
        for (int64_t r = rows.first; r < rows.last; r++) set_errors(s, r, w.start, w.stop, false);
        return error_row(s, rows.first);
    }

    struct Scratch {
        float *carried[2], *linear, *base, *zeros;
        int32_t *origins, *codes;  // of every group of the window
        const float **from, **by, **current;
        float **to;
    };

    Scratch scratch(Arena &arena) const {
        const int64_t items = TOGETHER * most, kept = across > 1 ? items * stride : 0;
        Scratch t;
        t.carried[0] = arena.take<float>(kept), t.carried[1] = arena.take<float>(kept);
        t.linear = arena.take<float>(items * books.g_padded), t.base = arena.take<float>(items), t.zeros = arena.take<float>(books.g_padded);
        t.origins = arena.take<int32_t>(window_groups * items), t.codes = arena.take<int32_t>(window_groups * items * books.m);
        t.from = arena.take<const float *>(items), t.by = arena.take<const float *>(items), t.current = arena.take<const float *>(items);
        t.to = arena.take<float *>(items);
        for (int64_t i = 0; i < books.g_padded; i++) t.zeros[i] = 0;
        return t;
    }

    // linear, and what the offsets add to the energies, of all hypotheses.
    void offer(Scratch &t, int64_t n, int64_t count, int64_t a, const Group &group) const {
        int64_t items = 0;
        for (int64_t row = 0; row < n; row++)
            for (int64_t i = 0; i < count; i++, items++) {
                const int64_t at = row * most + i;
                t.from[items] = t.zeros, t.by[items] = t.current[at] + a, t.to[items] = t.linear + at * books.g_padded;
                float square = 0;
                for (int64_t c = 0; c < books.g && across > 1; c++) square = multiply_add(t.current[at][a + c], t.current[at][a + c], square);
                t.base[at] += 0.5f * square;
            }
        add_products(items, t.to, t.from, t.by, group.to_linear, books.g_padded, books.g, books.g);
    }

    // What the chosen codewords bring into the columns after them.
    void carry(Scratch &t, const Hypotheses &h, int64_t n, int64_t p, const Window &w) const {
        const int64_t a = p * books.g, after = a + books.g;
        int64_t items = 0;
        for (int64_t row = 0; row < n; row++)
            for (int64_t i = 0; i < h.count; i++, items++) {
                const int64_t at = row * most + i;
                const float *source = t.current[row * most + h.origin[at]];
                t.from[items] = source + after, t.by[items] = h.sums + at * books.g_padded;
                t.to[items] = (across > 1 ? t.carried[p & 1] + at * stride : const_cast<float *>(source)) + after;
                t.base[at] = across > 1 ? h.energy[at] : 0;
                t.origins[p * TOGETHER * most + at] = h.origin[at];
                for (int64_t m = 0; m < books.m; m++) t.codes[(p * TOGETHER * most + at) * books.m + m] = h.codes[at * books.m + m];
            }
        add_products(items, t.to, t.from, t.by, tables.square(w) + a * stride + after, stride, books.g, w.width() - after);
        for (int64_t row = 0, item = 0; row < n; row++)
            for (int64_t i = 0; i < h.count; i++, item++) t.current[row * most + i] = t.to[item] - after;
    }

    void rows(int64_t s, const Window &w, const Rows &rows, float *products, int64_t, int thread) {
        Arena memory_left = arena(thread);
        Search search(books, within, across, most, memory_left);
        Scratch t = scratch(memory_left);
        const int64_t groups = w.width() / books.g;
        for (int64_t first = 0; first < rows.count(); first += TOGETHER) {
            const int64_t n = smaller(TOGETHER, rows.count() - first);
            for (int64_t row = 0; row < n; row++) t.current[row * most] = products + (first + row) * stride, t.base[row * most] = 0;
            int64_t count = 1;
            for (int64_t p = 0; p < groups; p++) {
                offer(t, n, count, p * books.g, tables.at(w, p));
                const Hypotheses &h = search.extend(n, count, t.base, t.linear, tables.at(w, p));
                carry(t, h, n, p, w);
                count = h.count;
            }
            for (int64_t row = 0; row < n; row++) finish(t, s, w, rows.first + first + row, row);
        }
    }

    // The best hypothesis' codes: the first, for they are sorted.
    void finish(const Scratch &t, int64_t s, const Window &w, int64_t r, int64_t row) {
        int64_t best = 0;
        for (int64_t p = w.width() / books.g; p-- > 0;) {
            const int64_t at = p * TOGETHER * most + row * most + best;
            for (int64_t m = 0; m < books.m; m++) codes_of(s, r)[(w.start / books.g + p) * books.m + m] = t.codes[at * books.m + m];
            best = t.origins[at];
        }
        set_errors(s, r, w.start, w.stop, true);
    }
};

// -- given all others --------------------------------------------------------------------------------------------------------------------

struct Improve : Pass {
    const int64_t within;
    Improve(const sedaq_part &of, const Codebooks &all, int64_t kept, int threads) : Pass(of, all, kept, 1, threads), within(kept) {}

    void prepare(int64_t s, const Window &w, int64_t p) { tables.prepare(part, books, s, w, p, false); }
    const float *inputs(int64_t s, const Window &, const Rows &rows) { return error_row(s, rows.first); }

    void rows(int64_t s, const Window &w, const Rows &rows, float *products, int64_t, int thread) {
        Arena memory_left = arena(thread);
        Search search(books, within, 1, most, memory_left);
        float *linear = memory_left.take<float>(TOGETHER * most * books.g_padded), *base = memory_left.take<float>(TOGETHER * most);
        float *moved = memory_left.take<float>(TOGETHER * books.g_padded);
        for (int64_t i = 0; i < TOGETHER * most; i++) base[i] = 0;
        for (int64_t first = 0; first < rows.count(); first += TOGETHER) {
            const int64_t n = smaller(TOGETHER, rows.count() - first);
            for (int64_t p = 0; p < w.width() / books.g; p++)
                choose(s, w, p, rows.first + first, n, products + first * stride, search, linear, base, moved);
            for (int64_t row = 0; row < n; row++) set_errors(s, rows.first + first + row, w.start, w.stop, true);
        }
    }

    void choose(int64_t s, const Window &w, int64_t p, int64_t r, int64_t n, float *products, Search &search, float *linear, const float *base, float *moved) {
        const int64_t a = p * books.g, after = a + books.g, width = books.g_padded;
        const Group group = tables.at(w, p);
        const float *from[TOGETHER] = {}, *by[TOGETHER] = {};
        float *to[TOGETHER] = {};
        for (int64_t row = 0; row < n; row++) {
            books.add_words(codes_of(s, r + row) + (w.start + a) / books.g * books.m, moved + row * width);
            from[row] = products + row * stride + a, by[row] = moved + row * width, to[row] = linear + row * most * width;
        }
        add_products(n, to, from, by, group.to_linear, width, books.g, books.g);
        const Hypotheses &h = search.extend(n, 1, base, linear, group);
        for (int64_t row = 0; row < n; row++) {
            float *old = moved + row * width, before = 0;
            for (int64_t i = 0; i < books.g; i++) before = multiply_add(0.5f * (to[row][i] + from[row][i]), old[i], before);
            // Where beam search missed the optimum, what was there may be better.
            const bool better = books.m == 1 || h.energy[row * most] < before;
            for (int64_t i = 0; i < books.g; i++) old[i] = better ? h.sums[row * most * width + i] - old[i] : 0;
            int64_t *codes = codes_of(s, r + row) + (w.start + a) / books.g * books.m;
            for (int64_t m = 0; m < books.m && better; m++) codes[m] = h.codes[row * most * books.m + m];
            to[row] = products + row * stride + after, from[row] = to[row];
        }
        add_products(n, to, from, by, tables.square(w) + a * stride + after, stride, books.g, w.width() - after);
    }
};

static bool in_range(const sedaq_part &part, bool coded) {
    bool fine = part.group_size > 0 && part.n_columns % part.group_size == 0 && part.n_codebooks > 0 && part.n_entries > 0 && part.n_entries <= 1 << 20;
    const int64_t count = part.n_conv_groups * part.n_rows * (part.n_columns / larger(1, part.group_size)) * part.n_codebooks;
    for (int64_t i = 0; i < count && coded && fine; i++) fine = (uint64_t)part.codes[i] < (uint64_t)part.n_entries;
    return fine;
}

int encode(const sedaq_part &part, int64_t within, int64_t across, int threads) {
    if (!in_range(part, false) || within < 1 || across < 1) return 1;
    const Codebooks books(part.n_codebooks, part.n_entries, part.group_size, part.codebooks);
    Encode pass(part, books, within, across, threads);
    if (!books.ok() || !pass.ok()) return 2;
    return Sweep<Encode>(part, pass, TRIANGLE).run(threads);
}

int improve(const sedaq_part &part, int64_t within, int threads) {
    if (!in_range(part, true) || within < 1) return 1;
    const Codebooks books(part.n_codebooks, part.n_entries, part.group_size, part.codebooks);
    Improve pass(part, books, within, threads);
    if (!books.ok() || !pass.ok()) return 2;
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < part.n_conv_groups * part.n_rows; row++)
        pass.set_errors(row / part.n_rows, row % part.n_rows, 0, part.n_columns, true);
    return Sweep<Improve>(part, pass, WHOLE).run(threads);
}

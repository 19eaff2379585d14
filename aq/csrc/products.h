// Products of rows with columns of a block-diagonal matrix, one window of columns after the other.

enum { DEPTH = 256, WINDOW = 128 };  // terms that a tile takes before its neighbour's turn; columns of a window, at least one group

// sums[r] += Σ_i a[r][i] · b[i], vectors of columns, i rising: the one inner loop of all that follows.
template <int ROWS, int VECTORS>
static inline void accumulate(Vector (&sums)[ROWS][VECTORS], const float *const *a, const float *b, int64_t stride, int64_t count) {
    for (int64_t i = 0; i < count; i++, b += stride) {
        Vector row[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) row[v] = load(b + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const Vector x = broadcast(a[r][i]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sums[r][v] = multiply_add(x, row[v], sums[r][v]);
        }
    }
}

// to[r] = from[r] + Σ_i a[r][i] · b[i] on a tile of columns.
template <int ROWS, int VECTORS>
static inline void add_tile(float *const *to, const float *const *from, const float *const *a, const float *b, int64_t stride, int64_t count, int64_t at) {
    Vector sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) sums[r][v] = load(from[r] + at + v * LANES);
    accumulate<ROWS, VECTORS>(sums, a, b + at, stride, count);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) store(to[r] + at + v * LANES, sums[r][v]);
}

// The same for n rows and `width` columns; reads and writes whole vectors.
static void add_products(int64_t n, float *const *to, const float *const *from, const float *const *a, const float *b, int64_t stride, int64_t count, int64_t width) {
    for (int64_t r = 0; r < n; r += 4) {
        const float *some_from[4], *some_a[4];
        float *some_to[4];
        for (int64_t t = 0; t < 4; t++) {  // the last row again where there are fewer: it is read before it is written
            const int64_t row = smaller(r + t, n - 1);
            some_to[t] = to[row], some_from[t] = from[row], some_a[t] = a[row];
        }
        int64_t at = 0;
        for (; at + LANES < width; at += WIDE) add_tile<4, 2>(some_to, some_from, some_a, b, stride, count, at);
        if (at < width) add_tile<4, 1>(some_to, some_from, some_a, b, stride, count, at);
    }
}

// Columns start … stop − 1, and the matrix's rows first … last − 1, which hold all that is not zero there.
struct Window {
    int64_t start, stop, first, last;
    float *panels;  // (columns in steps of WIDE, last − first, WIDE)
    float *tables;  // what else belongs to these columns

    int64_t width() const { return stop - start; }
    int64_t depth() const { return last - first; }
    int64_t n_panels() const { return pieces(width(), WIDE); }
};

static inline int64_t window_columns(const sedaq_part &part) { return smaller(part.n_columns, larger(1, WINDOW / part.group_size) * part.group_size); }

// What of a matrix counts: all of it; the upper triangle, where it has no other; that with half the diagonal, a half of a symmetric matrix.
enum Extent { WHOLE, TRIANGLE, HALF };

static Window window_at(const sedaq_part &part, int64_t start, Extent extent, float *memory) {
    Window w = {start, smaller(start + window_columns(part), part.n_columns), 0, 0, memory, memory + round_up(window_columns(part), WIDE) * part.n_columns};
    int64_t first = 0;
    for (int64_t i = 0; i < part.n_blocks; first += part.blocks[i++].width) {
        const int64_t last = first + part.blocks[i].width;
        if (first <= w.start && w.start < last) w.first = first;
        if (first < w.stop && w.stop <= last) w.last = extent == WHOLE ? last : w.stop;
    }
    return w;
}

// Rows first … last − 1 of columns start … stop − 1 to `to`, zero outside the blocks.
static void copy_columns(const sedaq_part &part, int64_t s, int64_t start, int64_t stop, int64_t first, int64_t last, float *to, int64_t stride) {
    __builtin_memset(to, 0, (size_t)((last - first) * stride) * sizeof(float));
    int64_t origin = 0;
    for (int64_t i = 0; i < part.n_blocks; origin += part.blocks[i++].width) {
        const sedaq_block &block = part.blocks[i];
        const int64_t end = origin + block.width, left = larger(start, origin), right = smaller(stop, end);
        if (left >= right) continue;
        for (int64_t k = larger(first, origin); k < smaller(last, end); k++)
            __builtin_memcpy(to + (k - first) * stride + left - start, block.data + s * block.group_stride + (k - origin) * block.row_stride + left - origin,
                             (size_t)(right - left) * sizeof(float));
    }
}

static void pack(const sedaq_part &part, int64_t s, const Window &w, int64_t panel, Extent extent) {
    const int64_t start = w.start + panel * WIDE;
    float *to = w.panels + panel * w.depth() * WIDE;
    copy_columns(part, s, start, smaller(start + WIDE, w.stop), w.first, w.last, to, WIDE);
    for (int64_t k = start; k < w.last && extent == HALF; k++)
        for (int64_t c = 0; c < smaller(WIDE, k - start + 1); c++) to[(k - w.first) * WIDE + c] *= start + c == k ? 0.5f : 0;
}

template <int ROWS>
static inline int64_t multiply_tall(const float *x, int64_t x_stride, int64_t rows, const float *panel, int64_t count, float *products, int64_t stride, int64_t r) {
    for (; r + ROWS <= rows; r += ROWS) {
        const float *a[ROWS];
        float *to[ROWS];
        for (int t = 0; t < ROWS; t++) a[t] = x + (r + t) * x_stride, to[t] = products + (r + t) * stride;
        add_tile<ROWS, 2>(to, to, a, panel, WIDE, count, 0);
    }
    return r;
}

// products (rows, stride) += x (rows, x_stride) times a packed matrix of `depth` rows.
static void multiply(const float *x, int64_t x_stride, int64_t rows, const float *panels, int64_t depth, int64_t n_panels, float *products, int64_t stride) {
    for (int64_t k = 0; k < depth; k += DEPTH) {
        const int64_t count = smaller(DEPTH, depth - k);
        for (int64_t panel = 0; panel < n_panels; panel++) {
            const float *b = panels + (panel * depth + k) * WIDE;
            int64_t r = multiply_tall<TALL>(x + k, x_stride, rows, b, count, products + panel * WIDE, stride, 0);
            r = multiply_tall<2>(x + k, x_stride, rows, b, count, products + panel * WIDE, stride, r);
            multiply_tall<1>(x + k, x_stride, rows, b, count, products + panel * WIDE, stride, r);
        }
    }
}

// Rows that are worked on together: by their number alone, so that sums over chunks don't depend on threads.
static inline int64_t chunk_rows(int64_t n_rows) { return larger(12, smaller(48, round_up(pieces(n_rows, 16), 12))); }

// Work is cut the same way whatever the number of threads: conv groups into ranges, rows into chunks.
static inline int64_t n_ranges(int64_t count) { return smaller(count, 64); }
static inline int64_t range_start(int64_t count, int64_t range) { return count * range / n_ranges(count); }

// Goes through all windows of all conv groups in order. A task has
//   table_floats(columns)            of a window
//   prepare(s, window, group)        makes the tables of one of its groups
//   inputs(s, window, first, last)   rows of what is multiplied, (R, n), made ready where need be
//   rows(s, window, rows, products, stride, thread), with `rows` a chunk of those of conv group s and their `range`
struct Rows {
    int64_t first, last, chunk, range;
    int64_t count() const { return last - first; }
};

template <class Task> struct Sweep {
    const sedaq_part &part;
    Task &task;
    const Extent extent;
    const int64_t chunk, stride;

    Sweep(const sedaq_part &of, Task &what, Extent what_counts)
        : part(of), task(what), extent(what_counts), chunk(chunk_rows(of.n_rows)), stride(round_up(window_columns(of), WIDE) + WIDE) {}

    int64_t n_items(const Window &w) const { return w.n_panels() + w.width() / part.group_size; }

    void set_up(int64_t s, const Window &w, int64_t item) {
        if (item < w.n_panels())
            pack(part, s, w, item, extent);
        else
            task.prepare(s, w, item - w.n_panels());
    }

    void work(int64_t s, const Window &w, int64_t first, int64_t range, float *products, int thread) {
        const Rows rows = {first, smaller(first + chunk, part.n_rows), first / chunk, range};
        __builtin_memset(products, 0, (size_t)(rows.count() * stride) * sizeof(float));
        const float *x = task.inputs(s, w, rows);
        multiply(x + w.first, part.n_columns, rows.count(), w.panels, w.depth(), w.n_panels(), products, stride);
        task.rows(s, w, rows, products, stride, thread);
    }

    // Several windows at once, as many as fit into BATCH_BYTES: threads wait for each other once a batch.
    int run(int threads) {
        enum { BATCH_BYTES = 1 << 25 };
        const int64_t ranges = n_ranges(part.n_conv_groups), columns = window_columns(part), windows = pieces(part.n_columns, columns);
        const bool apart = ranges >= 2 * threads;  // threads take conv groups each, or else rows of one
        const int64_t slot = round_up(round_up(columns, WIDE) * part.n_columns + task.table_floats(columns), 16);
        const int64_t batch = apart ? 1 : larger(1, smaller(windows, BATCH_BYTES / (slot * (int64_t)sizeof(float))));
        Memory<float> slots((apart ? threads : batch) * slot), products(threads * chunk * stride);
        if (!slots.ok() || !products.ok()) return 2;
#pragma omp parallel num_threads(threads)
        {
            const int thread = omp_get_thread_num();
            float *mine = products.data + thread * chunk * stride;
            if (apart) {
#pragma omp for schedule(dynamic)
                for (int64_t range = 0; range < ranges; range++)
                    for (int64_t s = range_start(part.n_conv_groups, range); s < range_start(part.n_conv_groups, range + 1); s++)
                        for (int64_t i = 0; i < windows; i++) {
                            const Window w = window_at(part, i * columns, extent, slots.data + thread * slot);
                            for (int64_t item = 0; item < n_items(w); item++) set_up(s, w, item);
                            for (int64_t first = 0; first < part.n_rows; first += chunk) work(s, w, first, range, mine, thread);
                        }
            } else {
                for (int64_t range = 0; range < ranges; range++)
                    for (int64_t s = range_start(part.n_conv_groups, range); s < range_start(part.n_conv_groups, range + 1); s++)
                        for (int64_t begin = 0; begin < windows; begin += batch) {
                            const int64_t end = smaller(begin + batch, windows);
                            const int64_t max_items = round_up(columns, WIDE) / WIDE + columns / part.group_size;
#pragma omp for schedule(dynamic)
                            for (int64_t item = 0; item < (end - begin) * max_items; item++) {
                                const Window w = window_at(part, (begin + item / max_items) * columns, extent, slots.data + item / max_items * slot);
                                if (item % max_items < n_items(w)) set_up(s, w, item % max_items);
                            }
#pragma omp for schedule(dynamic)
                            for (int64_t first = 0; first < part.n_rows; first += chunk)
                                for (int64_t i = begin; i < end; i++)
                                    work(s, window_at(part, i * columns, extent, slots.data + (i - begin) * slot), first, range, mine, thread);
                        }
            }
        }
        return 0;
    }
};

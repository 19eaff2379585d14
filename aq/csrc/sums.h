// Sums over rows: quadratic forms, and sums by code for least squares.

// Σ a[i] · b[i] in sixteen interleaved sums, the same for all widths of vectors.
static double dot(const float *a, const float *b, int64_t n) {
    float sums[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
#pragma GCC unroll 16
        for (int j = 0; j < 16; j += LANES) store(sums + j, multiply_add(load(a + i + j), load(b + i + j), load(sums + j)));
    for (; i < n; i++) sums[i % 16] = multiply_add(a[i], b[i], sums[i % 16]);
    double sum = 0;
    for (float part : sums) sum += part;
    return sum;
}

// What is multiplied with H: sums of codewords, times the scale where `scaled`; the weights where there are no codebooks.
struct Rebuilt {
    const sedaq_part &part;
    const Codebooks &books;
    Memory<float> made;  // (S, R, n)

    Rebuilt(const sedaq_part &of, const Codebooks &all) : part(of), books(all), made(of.codebooks ? of.n_conv_groups * of.n_rows * of.n_columns : 0) {}
    const float *values() const { return part.codebooks ? made.data : part.weights; }
    void build(bool scaled, int threads) {
        if (!part.codebooks) return;
        const int64_t groups = part.n_columns / books.g;
#pragma omp parallel for num_threads(threads)
        for (int64_t row = 0; row < part.n_conv_groups * part.n_rows; row++) {
            float *to = made.data + row * part.n_columns;
            for (int64_t j = 0; j < groups; j++) books.add_words(part.codes + (row * groups + j) * books.m, to + j * books.g);
            for (int64_t i = 0; i < part.n_columns && scaled; i++) to[i] *= part.scales[row];
        }
    }
};

struct Products {
    const sedaq_part &part;
    float *found;

    int64_t table_floats(int64_t) const { return 0; }
    void prepare(int64_t, const Window &, int64_t) {}
    const float *inputs(int64_t s, const Window &, const Rows &rows) { return part.weights + (s * part.n_rows + rows.first) * part.n_columns; }
    void rows(int64_t s, const Window &w, const Rows &rows, const float *products, int64_t stride, int) {
        for (int64_t r = 0; r < rows.count(); r++)
            __builtin_memcpy(found + (s * part.n_rows + rows.first + r) * part.n_columns + w.start, products + r * stride, (size_t)w.width() * sizeof(float));
    }
};

// By half of H, which is symmetric: ½ x H xᵀ = x T xᵀ, T its upper triangle with half the diagonal.
struct Forms {
    const sedaq_part &part;
    const float *u;
    double *forms;

    int64_t table_floats(int64_t) const { return 0; }
    void prepare(int64_t, const Window &, int64_t) {}
    const float *inputs(int64_t s, const Window &, const Rows &rows) { return u + (s * part.n_rows + rows.first) * part.n_columns; }
    void rows(int64_t s, const Window &w, const Rows &rows, const float *products, int64_t stride, int) {
        for (int64_t r = 0; r < rows.count(); r++) {
            const int64_t row = s * part.n_rows + rows.first + r, at = row * part.n_columns + w.start;
            double *sums = forms + 2 * row;
            if (w.start == 0) sums[0] = sums[1] = 0;
            sums[0] += 2 * dot(products + r * stride, u + at, w.width());
            if (part.codebooks) sums[1] += dot(part.weighted + at, u + at, w.width());
        }
    }
};

struct SumsByCode {
    const sedaq_part &part;
    const Codebooks &books;
    const float *x;
    const int64_t n_chunks, size;  // of a chunk's sums
    Memory<float> sums;            // (ranges, chunks, M, K, g)

    SumsByCode(const sedaq_part &of, const Codebooks &all, const float *values)
        : part(of), books(all), x(values), n_chunks(pieces(of.n_rows, chunk_rows(of.n_rows))), size(all.m * all.k * all.g),
          sums(n_ranges(of.n_conv_groups) * n_chunks * size) {
        if (sums.ok()) sums.clear();
    }
    int64_t table_floats(int64_t) const { return 0; }
    void prepare(int64_t, const Window &, int64_t) {}
    const float *inputs(int64_t s, const Window &, const Rows &rows) { return x + (s * part.n_rows + rows.first) * part.n_columns; }
    void rows(int64_t s, const Window &w, const Rows &rows, const float *products, int64_t stride, int) {
        const int64_t g = books.g, groups = part.n_columns / g;
        float *mine = sums.data + (rows.range * n_chunks + rows.chunk) * size;
        for (int64_t r = 0; r < rows.count(); r++) {
            const int64_t row = s * part.n_rows + rows.first + r;
            const int64_t *codes = part.codes + (row * groups + w.start / g) * books.m;
            const float *values = products + r * stride, scale = part.scales[row];
            for (int64_t j = 0; j < w.width() / g; j++, values += g)
                for (int64_t m = 0; m < books.m; m++) {
                    float *to = mine + (m * books.k + *codes++) * g;
                    for (int64_t i = 0; i < g; i++) to[i] = multiply_add(values[i], scale, to[i]);
                }
        }
    }

    // The weights' products are at hand.
    void take_weighted(int threads) {
        const int64_t ranges = n_ranges(part.n_conv_groups), chunk = chunk_rows(part.n_rows);
        const Window whole = {0, part.n_columns, 0, 0, nullptr, nullptr};
#pragma omp parallel for num_threads(threads)
        for (int64_t piece = 0; piece < ranges * n_chunks; piece++) {
            const int64_t range = piece / n_chunks, first = piece % n_chunks * chunk;
            for (int64_t s = range_start(part.n_conv_groups, range); s < range_start(part.n_conv_groups, range + 1); s++)
                rows(s, whole, {first, smaller(first + chunk, part.n_rows), piece % n_chunks, range}, part.weighted + (s * part.n_rows + first) * part.n_columns, part.n_columns, 0);
        }
    }
};

int forms(const sedaq_part &part, double *found, int threads) {
    if (!in_range(part, part.codebooks != nullptr)) return 1;
    const Codebooks books(part.n_codebooks, part.n_entries, part.group_size, part.codebooks);
    Rebuilt u(part, books);
    if (!books.ok() || !u.made.ok()) return 2;
    u.build(false, threads);
    Forms task = {part, u.values(), found};
    return Sweep<Forms>(part, task, HALF).run(threads);
}

int products(const sedaq_part &part, float *found, int threads) {
    if (!in_range(part, false)) return 1;
    Products task = {part, found};
    return Sweep<Products>(part, task, WHOLE).run(threads);
}

int sums_by_code(const sedaq_part &part, float *sums, int threads) {
    if (!in_range(part, true)) return 1;
    const Codebooks books(part.n_codebooks, part.n_entries, part.group_size, part.codebooks);
    Rebuilt x(part, books);
    SumsByCode task(part, books, x.values());
    if (!books.ok() || !x.made.ok() || !task.sums.ok()) return 2;
    int status = 0;
    if (part.codebooks) {
        x.build(true, threads);
        status = Sweep<SumsByCode>(part, task, WHOLE).run(threads);
    } else {
        task.take_weighted(threads);
    }
    for (int64_t i = 0; i < task.size && !status; i++) {
        sums[i] = 0;
        for (int64_t chunk = 0; chunk < task.sums.count / task.size; chunk++) sums[i] += task.sums.data[chunk * task.size + i];
    }
    return status;
}

// -- how much of which block each codeword meets -----------------------------------------------------------------------------------------

// sums (N, g, g) = Σ over positions of mass[position][n] · block(position); a task gives both of a position, in order whatever the threads.
template <class Task> static int sum_blocks(const Task &task, int64_t positions, int64_t n, int64_t g, float *sums, int threads) {
    enum { AT_ONCE = 64 };
    Memory<float> masses(AT_ONCE * n), blocks(AT_ONCE * g * g);
    if (!masses.ok() || !blocks.ok()) return 2;
    for (int64_t i = 0; i < n * g * g; i++) sums[i] = 0;
    for (int64_t first = 0; first < positions; first += AT_ONCE) {
        const int64_t count = smaller(AT_ONCE, positions - first);
#pragma omp parallel num_threads(threads)
        {
#pragma omp for
            for (int64_t i = 0; i < count; i++) {
                for (int64_t k = 0; k < n; k++) masses.data[i * n + k] = 0;
                task.add_masses(first + i, masses.data + i * n);
                task.copy_block(first + i, blocks.data + i * g * g);
            }
#pragma omp for
            for (int64_t k = 0; k < n; k++)
                for (int64_t i = 0; i < count; i++) {
                    const float mass = masses.data[i * n + k];
                    for (int64_t j = 0; j < g * g && mass != 0; j++) sums[k * g * g + j] = multiply_add(mass, blocks.data[i * g * g + j], sums[k * g * g + j]);
                }
        }
    }
    return 0;
}

struct Carried {
    const sedaq_part &part;

    void add_masses(int64_t position, float *masses) const {
        const int64_t groups = part.n_columns / part.group_size, s = position / groups, j = position % groups;
        for (int64_t row = s * part.n_rows; row < (s + 1) * part.n_rows; row++)
            for (int64_t m = 0; m < part.n_codebooks; m++)
                masses[m * part.n_entries + part.codes[(row * groups + j) * part.n_codebooks + m]] += part.scales[row] * part.scales[row];
    }
    void copy_block(int64_t position, float *block) const {
        const int64_t g = part.group_size, groups = part.n_columns / g, a = position % groups * g;
        copy_columns(part, position / groups, a, a + g, a, a + g, block, g);
    }
};

int carried_by_code(const sedaq_part &part, float *carried, int threads) {
    if (!in_range(part, true)) return 1;
    const int64_t positions = part.n_conv_groups * (part.n_columns / part.group_size);
    return sum_blocks(Carried{part}, positions, (int64_t)part.n_codebooks * part.n_entries, part.group_size, carried, threads);
}

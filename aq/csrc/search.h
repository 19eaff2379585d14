// Beam search through the codebooks of one group, for several rows that may each come with several hypotheses.

// Of one group: how its offset becomes `linear`, the quadratic form of its errors, and the codewords' own energies.
struct Group {
    const float *to_linear, *block, *own;  // (g, g padded) twice, (M, K padded)
};

struct Hypotheses {  // of TOGETHER rows, `most` apart
    int64_t count;
    float *energy;
    int32_t *origin, *codes;  // which one before this group it comes from; (M)
    float *sums;              // (g padded) of codewords
};

static inline int64_t saturated_product(int64_t a, int64_t b, int64_t limit) { return b && a > limit / b ? limit : smaller(a * b, limit); }

// How many hypotheses there can be after `groups` groups.
static int64_t max_hypotheses(const Codebooks &books, int64_t limit, int64_t groups) {
    int64_t most = 1;
    for (int64_t i = 0; i < books.m * groups && most < limit; i++) most = saturated_product(most, books.k, limit);
    return most;
}

struct Search {
    const Codebooks &books;
    const int64_t within, across, most;  // kept between codebooks, after the last, and whichever is more
    Hypotheses found[2];
    float *gradients, *energies;
    int64_t *candidates, *keys, *entries;
    float *energy, *minima;
    const float **from, **by, **linears;
    float **to;

    int64_t items() const { return TOGETHER * most; }
    static int64_t hypotheses_held(const Codebooks &books, int64_t within, int64_t across, int64_t groups) {
        return larger(max_hypotheses(books, across, groups), max_hypotheses(books, saturated_product(within, across, INT64_MAX), groups));
    }
    static int64_t bytes(const Codebooks &books, int64_t most) {
        const int64_t items = TOGETHER * most;
        return 2 * (Arena::bytes_of<float>(items) + Arena::bytes_of<int32_t>(items) + Arena::bytes_of<int32_t>(items * books.m) +
                    Arena::bytes_of<float>(items * books.g_padded)) +
               Arena::bytes_of<float>(items * books.g_padded) + Arena::bytes_of<float>(items * books.k_padded) +
               Arena::bytes_of<int64_t>(most * (2 * books.k_padded) + 64) + Arena::bytes_of<int64_t>(most) + Arena::bytes_of<int64_t>(items) +
               Arena::bytes_of<float>(items) + Arena::bytes_of<float>(items * 16) + 4 * Arena::bytes_of<float *>(items);
    }
    Search(const Codebooks &all, int64_t kept_within, int64_t kept_across, int64_t max_kept, Arena &arena)
        : books(all), within(kept_within), across(kept_across), most(max_kept) {
        for (Hypotheses &h : found) {
            h.count = 0;
            h.energy = arena.take<float>(items()), h.origin = arena.take<int32_t>(items());
            h.codes = arena.take<int32_t>(items() * books.m), h.sums = arena.take<float>(items() * books.g_padded);
        }
        gradients = arena.take<float>(items() * books.g_padded), energies = arena.take<float>(items() * books.k_padded);
        candidates = arena.take<int64_t>(most * (2 * books.k_padded) + 64), keys = arena.take<int64_t>(most), entries = arena.take<int64_t>(items());
        energy = arena.take<float>(items()), minima = arena.take<float>(items() * 16);
        from = arena.take<const float *>(items()), by = arena.take<const float *>(items());
        linears = arena.take<const float *>(items()), to = arena.take<float *>(items());
    }

    // Hypothesis `at` takes `entry` of codebook m after hypothesis `old`, which is none at m = 0; then it comes from `parent` before the group.
    static inline void take(const Hypotheses &h, const Hypotheses &before, const float *word, int64_t n_books, int64_t stride, int64_t width, int64_t m, int64_t at,
                            int64_t old, int64_t parent, int64_t entry) {
        int32_t *codes = h.codes + at * n_books;
        const int32_t *codes_before = before.codes + old * n_books;
        float *sums = h.sums + at * stride;
        const float *sums_before = before.sums + old * stride;
        h.origin[at] = m ? before.origin[old] : (int32_t)parent;
        for (int64_t i = 0; i < m; i++) codes[i] = codes_before[i];
        codes[m] = (int32_t)entry;
        for (int64_t i = 0; i < width; i += LANES) store(sums + i, m ? load(sums_before + i) + load(word + i) : load(word + i));
    }

    // `linear` of the hypotheses so far: that of the origin, and what the codewords taken since add.
    void gradients_of(const Hypotheses &h, int64_t rows, const float *linear, const Group &group) {
        int64_t n = 0;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < h.count; i++, n++) {
                const int64_t at = row * most + i;
                from[n] = linear + (row * most + h.origin[at]) * books.g_padded;
                by[n] = h.sums + at * books.g_padded, to[n] = gradients + at * books.g_padded, linears[n] = to[n];
            }
        add_products(n, to, from, by, group.block, books.g_padded, books.g, books.g);
    }

    void take_best(const Hypotheses &h, const Hypotheses &before, int64_t m, int64_t rows, int64_t count, const float *base, const float *own) {
        float *found = energy;
        const int64_t *entry = entries, apart = most, n_books = books.m, width = round_up(books.g, LANES);
        nearest_of(books, m, own, rows * count, linears, found, entries);
        for (int64_t row = 0; row < rows; row++) {
            int64_t parent = 0;
            float best = INFINITE;
            for (int64_t i = 0; i < count; i++) {
                const float whole = found[row * count + i] + base[row * apart + i];
                if (whole < best) best = whole, parent = i;
            }
            const int64_t at = row * apart, chosen = entry[row * count + parent];
            h.energy[at] = best;
            take(h, before, books.word(m, chosen), n_books, books.g_padded, width, m, at, at + parent, parent, chosen);
        }
    }

    void take_several(const Hypotheses &h, const Hypotheses &before, int64_t m, int64_t rows, int64_t count, const float *base, const float *own) {
        const int64_t k_padded = books.k_padded, kept = h.count, apart = most, n_books = books.m, width = round_up(books.g, LANES), *key = keys;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < count; i++) energy[row * count + i] = base[row * apart + i];
        energies_of(books, m, own, rows * count, linears, energy, energies, minima);
        for (int64_t row = 0; row < rows; row++) {
            const float *values = energies + row * count * k_padded;
            smallest(books, values, minima + row * count * 16, count, kept, candidates, keys);
            for (int64_t i = 0; i < kept; i++) {
                const uint32_t place = place_of(key[i]), parent = place / (uint32_t)k_padded, entry = place - parent * (uint32_t)k_padded;
                h.energy[row * apart + i] = values[place];
                take(h, before, books.word(m, entry), n_books, books.g_padded, width, m, row * apart + i, row * apart + parent, parent, entry);
            }
        }
    }

    // One group more for `rows` rows of `count` hypotheses: the best by base + ½ u block uᵀ + linear · u, the best first.
    const Hypotheses &extend(int64_t rows, int64_t count, const float *base, const float *linear, const Group &group) {
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < count; i++) linears[row * count + i] = linear + (row * most + i) * books.g_padded;
        const Hypotheses *before = &found[1];
        for (int64_t m = 0; m < books.m; m++) {
            if (m) gradients_of(*before, rows, linear, group), count = before->count, base = before->energy;
            Hypotheses &h = found[m & 1];
            const int64_t kept = m + 1 < books.m ? saturated_product(within, across, INT64_MAX) : across;
            h.count = saturated_product(count, books.k, kept);
            const float *own = group.own + m * books.k_padded;
            if (h.count == 1)
                take_best(h, *before, m, rows, count, base, own);
            else
                take_several(h, *before, m, rows, count, base, own);
            before = &h;
        }
        return *before;
    }
};

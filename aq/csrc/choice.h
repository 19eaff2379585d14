// The best codewords of one group: energies of all of them, and the n smallest. Energies are halved: ½ u B uᵀ + linear · u.

enum { TOGETHER = 4 };  // rows that are searched at once

struct Codebooks {
    const int64_t m, k, g, k_padded, g_padded;
    Memory<float> rows, columns;  // (M, K, g padded) and (M, g, K padded), zeros behind

    Codebooks(int64_t n, int64_t entries, int64_t size, const float *codebooks)
        : m(n), k(entries), g(size), k_padded(round_up(entries, 16)), g_padded(round_up(size, 16)), rows(m * k * g_padded), columns(m * g * k_padded) {
        if (!ok() || !codebooks) return;  // weights may be all there is
        rows.clear(), columns.clear();
        for (int64_t book = 0; book < m; book++)
            for (int64_t entry = 0; entry < k; entry++)
                for (int64_t i = 0; i < g; i++) {
                    const float number = codebooks[(book * k + entry) * g + i];
                    rows.data[(book * k + entry) * g_padded + i] = columns.data[(book * g + i) * k_padded + entry] = number;
                }
    }
    bool ok() const { return rows.ok() && columns.ok(); }
    const float *columns_of(int64_t book) const { return columns.data + book * g * k_padded; }
    const float *word(int64_t book, int64_t entry) const { return rows.data + (book * k + entry) * g_padded; }

    void add_words(const int64_t *codes, float *sum) const {
        for (int64_t i = 0; i < g; i++) sum[i] = 0;
        for (int64_t book = 0; book < m; book++) {
            const float *c = word(book, codes[book]);
            for (int64_t i = 0; i < g; i++) sum[i] += c[i];
        }
    }

    // ½ c block cᵀ of every codeword (K padded), infinite behind the last; block (g, stride).
    void own_energies(int64_t book, const float *block, int64_t stride, float *own) const {
        const float *words = columns_of(book);
        for (int64_t at = 0; at < k_padded; at += LANES) {
            Vector sum = broadcast(0);
            for (int64_t i = 0; i < g; i++) {
                Vector along = broadcast(0);
                for (int64_t j = 0; j < g; j++) along = multiply_add(broadcast(block[i * stride + j]), load(words + j * k_padded + at), along);
                sum = multiply_add(load(words + i * k_padded + at), along, sum);
            }
            store(own + at, sum);
        }
        for (int64_t entry = 0; entry < k; entry++) own[entry] *= 0.5f;
        for (int64_t entry = k; entry < k_padded; entry++) own[entry] = INFINITE;
    }
};

// -- one codeword ------------------------------------------------------------------------------------------------------------------------

template <int SIZE, int VECTORS>
static inline void nearest_tile(const float *const *linear, const float *own, const float *words, int64_t stride, int64_t g, int64_t at, Vector &here, Vector (&best)[2],
                                Vector (&where)[2]) {
    Vector sums[2][VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) sums[0][v] = sums[1][v] = load(own + at + v * LANES);
    accumulate<2, VECTORS>(sums, linear, words + at, stride, SIZE ? SIZE : g);
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
        keep_less(best[0], where[0], sums[0][v], here);
        keep_less(best[1], where[1], sums[1][v], here);
        here = here + broadcast(LANES);
    }
}

// The codewords of least energy for two rows; the first of equals.
template <int SIZE>
static void nearest(const float *const *linear, const float *own, const float *words, int64_t stride, int64_t g, float *energy, int64_t *entry) {
    static const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Vector best[2] = {broadcast(INFINITE), broadcast(INFINITE)}, where[2] = {broadcast(0), broadcast(0)}, here = load(lanes);
    int64_t at = 0;
    for (; at + 4 * LANES <= stride; at += 4 * LANES) nearest_tile<SIZE, 4>(linear, own, words, stride, g, at, here, best, where);
    for (; at < stride; at += LANES) nearest_tile<SIZE, 1>(linear, own, words, stride, g, at, here, best, where);
    for (int r = 0; r < 2; r++) {
        energy[r] = least(best[r]);
        const float place = least(where_equal(best[r], broadcast(energy[r]), where[r], broadcast(INFINITE)));
        entry[r] = place < INFINITE ? (int64_t)place : 0;  // of NaN the first
    }
}

static void nearest_of(const Codebooks &books, int64_t book, const float *own, int64_t n, const float *const *linear, float *energy, int64_t *entry) {
    const float *words = books.columns_of(book);
    for (int64_t r = 0; r < n; r += 2) {
        const float *two[2] = {linear[r], linear[smaller(r + 1, n - 1)]};
        float energies[2];
        int64_t entries[2];
        switch (books.g) {
            case 2: nearest<2>(two, own, words, books.k_padded, 2, energies, entries); break;
            case 3: nearest<3>(two, own, words, books.k_padded, 3, energies, entries); break;
            case 4: nearest<4>(two, own, words, books.k_padded, 4, energies, entries); break;
            case 6: nearest<6>(two, own, words, books.k_padded, 6, energies, entries); break;
            case 8: nearest<8>(two, own, words, books.k_padded, 8, energies, entries); break;
            default: nearest<0>(two, own, words, books.k_padded, books.g, energies, entries);
        }
        for (int64_t t = 0; t < smaller(2, n - r); t++) energy[r + t] = energies[t], entry[r + t] = entries[t];
    }
}

// -- several -----------------------------------------------------------------------------------------------------------------------------

// Energies of all codewords for n rows, each above what it comes with: energies (n, K padded), and the least of every sixteenth, minima (n, 16).
static void energies_of(const Codebooks &books, int64_t book, const float *own, int64_t n, const float *const *linear, const float *before, float *energies,
                        float *minima) {
    enum { VECTORS = WIDE > 16 ? 1 : 2 };
    const float *words = books.columns_of(book);
    for (int64_t r = 0; r < n; r += 4) {
        const float *four[4];
        int64_t row[4];
        Vector min_of[4][16 / LANES], above[4];
        for (int t = 0; t < 4; t++) row[t] = smaller(r + t, n - 1), four[t] = linear[row[t]], above[t] = broadcast(before[row[t]]);
        for (int t = 0; t < 4; t++)
            for (int i = 0; i < 16 / LANES; i++) min_of[t][i] = broadcast(INFINITE);
        for (int64_t at = 0; at < books.k_padded; at += VECTORS * LANES) {
            Vector sums[4][VECTORS];
#pragma GCC unroll 8
            for (int i = 0; i < VECTORS; i++)
#pragma GCC unroll 8
                for (int t = 0; t < 4; t++) sums[t][i] = load(own + at + i * LANES) + above[t];
            accumulate<4, VECTORS>(sums, four, words + at, books.k_padded, books.g);
#pragma GCC unroll 8
            for (int i = 0; i < VECTORS; i++)
#pragma GCC unroll 8
                for (int t = 0; t < 4; t++) {
                    store(energies + row[t] * books.k_padded + at + i * LANES, sums[t][i]);
                    min_of[t][i] = minimum(sums[t][i], min_of[t][i]);
                }
        }
        for (int t = 0; t < 4; t++)
            for (int i = 0; i < 16 / LANES; i++) store(minima + row[t] * 16 + i * LANES, min_of[t][i]);
    }
}

// The greatest of n disjoint ones of 32 minima of a lane, in the lane where it is least.
template <int N> static inline float max_of(const Vector *minima) {
    Vector greatest = broadcast(-INFINITE);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        Vector folded = minima[i];
#pragma GCC unroll 8
        for (int j = i + N; j < 32 / LANES; j += N) folded = minimum(folded, minima[j]);
        greatest = maximum(greatest, folded);
    }
    return least(greatest);
}

// The n-th least of COUNT minima.
template <int COUNT> static inline float nth_of(const Vector *minima, int64_t n) {
    float each[COUNT];
    Vector below[COUNT / LANES], found = broadcast(INFINITE);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT / LANES; i++) store(each + i * LANES, minima[i]), below[i] = broadcast(0);
    for (float other : each)
#pragma GCC unroll 8
        for (int i = 0; i < COUNT / LANES; i++) below[i] = below[i] + one_where_at_most(broadcast(other), minima[i]);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT / LANES; i++)
        found = minimum(where_equal(one_where_at_most(broadcast((float)n), below[i]), broadcast(1), minima[i], broadcast(INFINITE)), found);
    return least(found);
}

// The n-th least of many, which change places.
static float nth_of_many(float *values, int64_t count, int64_t n) {
    for (int64_t low = 0, high = count - 1; low < high;) {
        const float pivot = values[(low + high) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot) i++;
            while (values[j] > pivot) j--;
            if (i > j) break;
            const float value = values[i];
            values[i++] = values[j], values[j--] = value;
        }
        if (n - 1 <= j)
            high = j;
        else if (n - 1 >= i)
            low = i;
        else
            break;
    }
    return values[n - 1];
}

// A bound that at least n energies do not exceed, as tight as the minima (b, 16) tell, which change places.
static float bound_of(float *minima, int64_t b, int64_t n) {
    enum { HALF_OF_THEM = 16 / LANES };
    if (n > 16 * b) return INFINITE;
    if (n > 32) return nth_of_many(minima, 16 * b, n);
    Vector min_of[2 * HALF_OF_THEM];
#pragma GCC unroll 8
    for (int i = 0; i < 2 * HALF_OF_THEM; i++) min_of[i] = i * LANES < 16 * b ? load(minima + i * LANES) : broadcast(INFINITE);
    for (int64_t h = 2; h < b; h++)
        for (int i = 0; i < HALF_OF_THEM; i++) {
            Vector &some = min_of[(h & 1) * HALF_OF_THEM + i];
            some = minimum(load(minima + h * 16 + i * LANES), some);
        }
    if (n == 2) return max_of<2>(min_of);
    if (n == 4 && b > 1 && LANES <= 8) return max_of<LANES <= 8 ? 4 : 2>(min_of);
    if (n > 8) return nth_of<32>(min_of, n);
#pragma GCC unroll 8
    for (int i = 0; i < HALF_OF_THEM; i++) min_of[i] = minimum(min_of[i], min_of[i + HALF_OF_THEM]);
    return nth_of<16>(min_of, n);
}

// Energy and place in one number that sorts by energy, then place.
static inline int64_t key_of(float energy, int64_t place) {
    int32_t bits;
    __builtin_memcpy(&bits, &energy, sizeof bits);
    return (int64_t)((uint64_t)(uint32_t)(bits ^ ((bits >> 31) & 0x7fffffff)) << 32 | (uint64_t)place);
}
static inline uint32_t place_of(int64_t key) { return (uint32_t)key; }

// The n smallest of at most COUNT different keys to `to`, sorted by counting those before each: no branches.
template <int COUNT> static void rank(const int64_t *keys, int64_t count, int64_t n, int64_t *to) {
    int64_t padded[COUNT], ranks[COUNT];
    for (int64_t i = 0; i < COUNT; i++) padded[i] = i < count ? keys[i] : INT64_MAX;
    for (int i = 0; i < COUNT; i++) ranks[i] = padded[0] < padded[i];
    for (int64_t j = 1; j < count; j++)
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; i++) ranks[i] += padded[j] < padded[i];
    for (int64_t i = 0; i < count; i++)
        if (ranks[i] < n) to[ranks[i]] = padded[i];
}

static void sift_down(int64_t *heap, int64_t n, int64_t at) {  // the largest on top
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] > heap[child]) child++;
        if (heap[at] >= heap[child]) return;
        const int64_t key = heap[at];
        heap[at] = heap[child], heap[child] = key;
    }
}

// The n smallest of `count` different keys to `to`, sorted.
static void sort_smallest(const int64_t *keys, int64_t count, int64_t n, int64_t *to) {
    if (count <= 8) return rank<8>(keys, count, n, to);
    if (count <= 16) return rank<16>(keys, count, n, to);
    if (count <= 32) return rank<32>(keys, count, n, to);
    if (count <= 64) return rank<64>(keys, count, n, to);
    for (int64_t i = 0; i < n; i++) to[i] = keys[i];
    for (int64_t i = n / 2; i-- > 0;) sift_down(to, n, i);
    for (int64_t i = n; i < count; i++)
        if (keys[i] < to[0]) to[0] = keys[i], sift_down(to, n, 0);
    for (int64_t i = n; i-- > 1;) {
        const int64_t key = to[0];
        to[0] = to[i], to[i] = key;
        sift_down(to, i, 0);
    }
}

// The n ≤ b · K smallest of energies (b, K padded) as sorted keys; a place is h · K padded + entry.
static void smallest(const Codebooks &books, const float *energies, float *minima, int64_t b, int64_t n, int64_t *candidates, int64_t *keys) {
    const Vector bound = broadcast(bound_of(minima, b, n));
    const int64_t k = books.k, k_padded = books.k_padded;
    const uint32_t behind = k < k_padded ? 0xffffu >> (k_padded - k) : 0xffff;  // what of the last sixteen there is
    int64_t *marked = candidates + b * k_padded, n_marked = 0, count = 0;  // where codewords are within the bound, in sixteens: place and bits
    for (int64_t h = 0; h < b; h++)
        for (int64_t block = 0; block < k_padded; block += 16) {
            const int64_t at = h * k_padded + block;
            uint32_t bits = 0;
#pragma GCC unroll 4
            for (int i = 0; i < 16; i += LANES) bits |= at_most(load(energies + at + i), bound) << i;
            if (block + 16 > k) bits &= behind;
            marked[n_marked] = at << 16 | bits;
            n_marked += bits != 0;  // no branch, which could not be foreseen
        }
    for (int64_t i = 0; i < n_marked; i++)
        for (uint32_t bits = marked[i] & 0xffff; bits; bits &= bits - 1) {
            const int64_t at = (marked[i] >> 16) + __builtin_ctz(bits);
            candidates[count++] = key_of(energies[at], at);
        }
    for (; count < n; count++) candidates[count] = key_of(INFINITE, count % k);  // NaN is at most nothing
    sort_smallest(candidates, count, n, keys);
}

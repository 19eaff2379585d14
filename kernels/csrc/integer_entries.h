// Entries of integers, for AVX-512. Included between entries.h and lookup.h.

typedef uint32_t Dwords __attribute__((vector_size(64)));
typedef int32_t SignedDwords __attribute__((vector_size(64)));
typedef uint16_t Words __attribute__((vector_size(64)));
typedef int16_t SignedWords __attribute__((vector_size(64)));

// Adding this makes a float's lowest bits those of the nearest integer.
static const float ROUNDER = 12582912;  // 1.5 · 2²³
static const int32_t ROUNDER_BITS = 0x4b400000;

template <>
struct Entry<2> {
    typedef int32_t Sum;
    enum { FLUSH = 16, GREATEST = 32767 / FLUSH - 1 };

    // `bound` is one that no entry passes.
    static float unit(float bound, float) { return bound / GREATEST; }
    static int64_t offset(int64_t) { return 0; }

    static inline Words packed(const Sixteen &low, const Sixteen &high) {
        return (Words)(((Dwords)(low + ROUNDER) & 0xffff) | (Dwords)(high + ROUNDER) << 16);
    }

    static inline void pack(const Sixteen *values, char *out) { store(out, packed(values[0], values[1])); }

    typedef Words Half;
    static inline Half half(const Sixteen *values, bool) { return packed(values[0], values[1]); }
    static inline void join(const Half &a, const Half &b, char *out) { store(out, a + b); }

    enum { TOGETHER = 1 };

    template <int N, int SHIFT, class Code>
    static inline void add(const Code *codes, int64_t, int64_t n, const char *tables, int64_t table_bytes, int32_t *sums) {
        SignedDwords low, high;
        load(low, sums);
        load(high, sums + 16);
        int64_t c = 0;
        for (; c + FLUSH <= n; c += FLUSH, tables += FLUSH * table_bytes) flush<FLUSH>(codes + c, FLUSH, tables, table_bytes, low, high);
        if (c < n) flush<0>(codes + c, n - c, tables, table_bytes, low, high);
        store(sums, low);
        store(sums + 16, high);
    }

    template <int N, class Code>
    static inline void flush(const Code *codes, int64_t n, const char *tables, int64_t table_bytes, SignedDwords &low, SignedDwords &high) {
        Words sum = {};
#pragma GCC unroll 16
        for (int64_t c = 0; c < (N ? N : n); c++, tables += table_bytes) {
            Words entry;
            load(entry, tables + codes[c] * (int64_t)ENTRY);
            sum += entry;
        }
        low += (SignedDwords)((Dwords)sum << 16) >> 16;
        high += (SignedDwords)sum >> 16;
    }
};

template <>
struct Entry<4> {
    typedef int32_t Sum;
    enum { FLUSH = 255, MIDDLE = 128 };

    // Entries are unsigned and clipped: the few beyond `usual`, which only the largest groups can reach, cost less than coarser units would.
    static float unit(float bound, float usual) { return (usual < bound ? usual : bound) / 127; }
    static int64_t offset(int64_t n_codes) { return MIDDLE * n_codes; }

    static inline void pack(const Sixteen *values, char *out) {
        Dwords packed = {};
#pragma GCC unroll 4
        for (int p = 3; p >= 0; p--) packed = (packed << 8) + clipped(values[p], MIDDLE, 0, 255);
        store(out, packed);
    }

    // The nearest integer of value + offset, between least and greatest.
    static inline Dwords clipped(const Sixteen &value, float offset, int32_t least, int32_t greatest) {
        SignedDwords bits = (SignedDwords)(value + (offset + ROUNDER)) - ROUNDER_BITS;
        bits = bits > least ? bits : least;
        return (Dwords)(bits < greatest ? bits : greatest);
    }

    // Words of FRACTION parts of a unit, those of tokens in even bytes and in odd ones. The clipping keeps sums of two from overflow.
    static const int16_t FRACTION = 1 << 6, HALF = 187 * FRACTION, GREATEST = 256 * FRACTION - 1;
    struct Half {
        Words even, odd;
    };

    static inline Half half(const Sixteen *values, bool first) {
        Dwords parts[4];
        const int32_t offset = first ? MIDDLE * FRACTION + FRACTION / 2 : 0;
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) parts[p] = clipped(values[p] * (float)FRACTION, (float)offset, offset - HALF, offset + HALF);
        return {(Words)((parts[0] & 0xffff) | parts[2] << 16), (Words)((parts[1] & 0xffff) | parts[3] << 16)};
    }

    static inline Words between(SignedWords x) {
        x = x > 0 ? x : 0;
        return (Words)(x < GREATEST ? x : GREATEST);
    }

    static inline void join(const Half &a, const Half &b, char *out) {
        const Words even = between((SignedWords)(a.even + b.even)) >> 6, odd = between((SignedWords)(a.odd + b.odd)) >> 6;
        store(out, even | odd << 8);
    }

    enum { TOGETHER = 1 };

    template <int N, int SHIFT, class Code>
    static inline void add(const Code *codes, int64_t, int64_t n, const char *tables, int64_t table_bytes, int32_t *sums) {
        for (int64_t c = 0; c < n; c += FLUSH, tables += FLUSH * table_bytes) flush(codes + c, smaller(FLUSH, n - c), tables, table_bytes, sums);
    }

    // Sums of words wrap around, but with the sums of their high bytes those of their low bytes are known.
    template <class Code>
    static inline void flush(const Code *codes, int64_t n, const char *tables, int64_t table_bytes, int32_t *sums) {
        Words all[2] = {}, high[2] = {};
        int64_t c = 0;
        for (; c + 4 <= n; c += 4, tables += 4 * table_bytes) {
#pragma GCC unroll 4
            for (int u = 0; u < 4; u++) {
                Words entry;
                load(entry, tables + u * table_bytes + codes[c + u] * (int64_t)ENTRY);
                all[u % 2] += entry;
                high[u % 2] += entry >> 8;
            }
        }
        for (; c < n; c++, tables += table_bytes) {
            Words entry;
            load(entry, tables + codes[c] * (int64_t)ENTRY);
            all[0] += entry;
            high[0] += entry >> 8;
        }
        const Words odd = high[0] + high[1], even = all[0] + all[1] - (odd << 8);
        const Dwords parts[4] = {(Dwords)even & 0xffff, (Dwords)odd & 0xffff, (Dwords)even >> 16, (Dwords)odd >> 16};
        for (int p = 0; p < 4; p++) {
            Dwords sum;
            load(sum, sums + 16 * p);
            store(sums + 16 * p, sum + parts[p]);
        }
    }
};

// Entries of lookup tables: one cache line holds 16 tokens as float32, 32 as 16-bit or 64 as 8-bit integers. Its 16 dwords hold tokens i,
// 16 + i, … one above the other, so that packing and widening are shifts. Included before lookup.h.
//
// `Entry` of PARTS numbers in a dword says
//   Sum, unit, offset(n)       what rows are summed to, what entries are multiples of, and what n of them add too much
//   pack(values, out)          tokens' float32 to one entry, already in units
//   Half, half, join           halves of a hierarchical codeword's product, and the entry of their sum
//   add(codes, n, tables, …)   n entries of as many tables to the sums of one row

enum { ENTRY = 64 };  // bytes

// PARTS numbers in a dword. The greatest entry, in units of the last place, is chosen for sums that cannot overflow between two flushes.
template <int PARTS>
struct Entry;

template <>
struct Entry<1> {
    typedef float Sum;

    static float unit(float, float) { return 1; }
    static int64_t offset(int64_t) { return 0; }
    static inline void pack(const Sixteen *values, char *out) { store(out, values[0]); }

    typedef Sixteen Half;
    static inline Half half(const Sixteen *values, bool) { return values[0]; }
    static inline void join(const Half &a, const Half &b, char *out) { store(out, a + b); }

    enum { TOGETHER = REGISTER == 16 ? 3 : 6 };  // rows whose sums fit into registers

    // Of N rows, whose codes lie `stride` apart. With SHIFT, a code's high bits and its low SHIFT ones have an entry each, low ones after high ones.
    template <int N, int SHIFT, class Code>
    static inline void add(const Code *codes, int64_t stride, int64_t n, const char *tables, int64_t table_bytes, float *sums) {
        Sixteen sum[N];
#pragma GCC unroll 8
        for (int r = 0; r < N; r++) load(sum[r], sums + r * 16);
        for (int64_t c = 0; c < n; c++, tables += table_bytes) {
#pragma GCC unroll 8
            for (int r = 0; r < N; r++) {
                const uint64_t code = codes[r * stride + c];
                Sixteen entry;
                load(entry, tables + (code >> SHIFT) * ENTRY);
                sum[r] += entry;
                if (SHIFT) {
                    load(entry, tables + (1 << SHIFT) * ENTRY + code % (1 << SHIFT) * ENTRY);
                    sum[r] += entry;
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < N; r++) store(sums + r * 16, sum[r]);
    }
};

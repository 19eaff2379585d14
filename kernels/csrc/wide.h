// Vectors of 16 floats, in registers of REGISTER bytes: the compiler takes its own vectors of 64 bytes through memory where registers are shorter.

typedef float Floats __attribute__((vector_size(REGISTER)));

// At any address. Copies by memcpy would be cut into 16 bytes where the instruction set is chosen by a pragma.
template <class Vector>
static inline void load(Vector &x, const void *from) {
    typedef Vector Anywhere __attribute__((aligned(1), may_alias));
    x = *(const Anywhere *)from;
}

template <class Vector>
static inline void store(void *to, const Vector &x) {
    typedef Vector Anywhere __attribute__((aligned(1), may_alias));
    *(Anywhere *)to = x;
}

template <class Vector>
static inline void clear(Vector &x) { x = Vector{}; }

#if REGISTER == 64
typedef Floats Sixteen;
#else
struct Sixteen {
    enum { N = 64 / REGISTER };
    Floats part[N];

    inline Sixteen &operator+=(const Sixteen &x) {
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) part[i] += x.part[i];
        return *this;
    }

    friend inline Sixteen operator+(Sixteen x, const Sixteen &y) { return x += y; }

    friend inline Sixteen operator*(Sixteen x, const Sixteen &y) {
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) x.part[i] *= y.part[i];
        return x;
    }

    friend inline Sixteen operator*(float by, Sixteen x) {
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) x.part[i] *= by;
        return x;
    }

    friend inline Sixteen operator-(Sixteen x) {
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) x.part[i] = -x.part[i];
        return x;
    }
};

// Part by part: a copy of the whole would lie in memory.
static inline void load(Sixteen &x, const void *from) {
#pragma GCC unroll 4
    for (int i = 0; i < Sixteen::N; i++) load(x.part[i], (const char *)from + i * REGISTER);
}

static inline void clear(Sixteen &x) {
#pragma GCC unroll 4
    for (int i = 0; i < Sixteen::N; i++) clear(x.part[i]);
}

static inline void store(void *to, const Sixteen &x) {
#pragma GCC unroll 4
    for (int i = 0; i < Sixteen::N; i++) store((char *)to + i * REGISTER, x.part[i]);
}
#endif

// 4 × 4 floats.
static inline void transpose_four(const float *in, int64_t in_stride, float *out, int64_t out_stride) {
    typedef float Four __attribute__((vector_size(16)));
    typedef int32_t Places __attribute__((vector_size(16)));
    const Places low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
    Four a, b, c, d;
    load(a, in);
    load(b, in + in_stride);
    load(c, in + 2 * in_stride);
    load(d, in + 3 * in_stride);
    const Four ab = __builtin_shuffle(a, b, low), cd = __builtin_shuffle(c, d, low), ab_high = __builtin_shuffle(a, b, high), cd_high = __builtin_shuffle(c, d, high);
    store(out, __builtin_shuffle(ab, cd, first));
    store(out + out_stride, __builtin_shuffle(ab, cd, second));
    store(out + 2 * out_stride, __builtin_shuffle(ab_high, cd_high, first));
    store(out + 3 * out_stride, __builtin_shuffle(ab_high, cd_high, second));
}

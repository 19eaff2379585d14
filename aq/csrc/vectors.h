// Vectors of LANES floats, and memory. With FMA a product and a sum round once, elsewhere twice; -ffp-contract=off keeps all else apart.

#if defined(ENCODER_AVX512)
enum { LANES = 16, TALL = 8 };  // TALL: rows of a tile of products
typedef __m512 Vector;
static inline Vector load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, Vector x) { _mm512_storeu_ps(p, x); }
static inline Vector broadcast(float x) { return _mm512_set1_ps(x); }
static inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vector minimum(Vector a, Vector b) { return _mm512_min_ps(a, b); }
static inline Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
static inline float least(Vector x) { return _mm512_reduce_min_ps(x); }
static inline uint32_t at_most(Vector x, Vector limit) { return _mm512_cmp_ps_mask(x, limit, _CMP_LE_OQ); }
static inline Vector one_where_at_most(Vector x, Vector limit) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LE_OQ), broadcast(1)); }
static inline void keep_less(Vector &best, Vector &place, Vector x, Vector here) {
    place = _mm512_mask_mov_ps(place, _mm512_cmp_ps_mask(x, best, _CMP_LT_OQ), here);
    best = _mm512_min_ps(x, best);
}
static inline Vector where_equal(Vector a, Vector b, Vector yes, Vector no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), yes);
}
#elif defined(ENCODER_AVX2)
enum { LANES = 8, TALL = 6 };
typedef __m256 Vector;
static inline Vector load(const float *p) { return _mm256_loadu_ps(p); }
static inline void store(float *p, Vector x) { _mm256_storeu_ps(p, x); }
static inline Vector broadcast(float x) { return _mm256_set1_ps(x); }
static inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vector minimum(Vector a, Vector b) { return _mm256_min_ps(a, b); }
static inline Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
static inline float least(Vector x) {
    __m128 half = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_min_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_min_ss(half, _mm_shuffle_ps(half, half, 1)));
}
static inline uint32_t at_most(Vector x, Vector limit) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_LE_OQ)); }
static inline Vector one_where_at_most(Vector x, Vector limit) { return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_LE_OQ), broadcast(1)); }
static inline void keep_less(Vector &best, Vector &place, Vector x, Vector here) {
    place = _mm256_blendv_ps(place, here, _mm256_cmp_ps(x, best, _CMP_LT_OQ));
    best = _mm256_min_ps(x, best);
}
static inline Vector where_equal(Vector a, Vector b, Vector yes, Vector no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
#else
enum { LANES = 4, TALL = 4 };
typedef float Vector __attribute__((vector_size(16)));
static inline Vector load(const float *p) {
    Vector x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
static inline void store(float *p, Vector x) { __builtin_memcpy(p, &x, sizeof x); }
static inline Vector broadcast(float x) { return Vector{x, x, x, x}; }
static inline Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
static inline Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
static inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
static inline float least(Vector x) {
    float first = x[0] < x[1] ? x[0] : x[1], second = x[2] < x[3] ? x[2] : x[3];
    return first < second ? first : second;
}
static inline uint32_t at_most(Vector x, Vector limit) {
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint32_t)(x[i] <= limit[i]) << i;
    return bits;
}
static inline Vector one_where_at_most(Vector x, Vector limit) { return x <= limit ? broadcast(1) : broadcast(0); }
static inline void keep_less(Vector &best, Vector &place, Vector x, Vector here) {
    place = x < best ? here : place;
    best = x < best ? x : best;
}
static inline Vector where_equal(Vector a, Vector b, Vector yes, Vector no) { return a == b ? yes : no; }
#endif

#if defined(ENCODER_AVX512) || defined(ENCODER_AVX2)
static inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
static inline float multiply_add(float a, float b, float c) { return a * b + c; }
#endif

enum { WIDE = 2 * LANES };  // columns of a tile of products
static const float INFINITE = __builtin_inff();

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
static inline int64_t pieces(int64_t x, int64_t step) { return (x + step - 1) / step; }

// Memory on cache lines that goes when its owner does; null where there is none left.
template <class T> struct Memory {
    T *data;
    int64_t count;
    explicit Memory(int64_t n) : data((T *)aligned_alloc(64, (size_t)round_up((n + 16) * (int64_t)sizeof(T), 64))), count(n) {}
    ~Memory() { free(data); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    bool ok() const { return data != nullptr; }
    void clear() { __builtin_memset(data, 0, (size_t)count * sizeof(T)); }
};

// A thread's share of a larger piece, handed out in stretches that begin on cache lines.
struct Arena {
    char *next;
    template <class T> static int64_t bytes_of(int64_t n) { return round_up(n * (int64_t)sizeof(T), 64); }
    template <class T> T *take(int64_t n) {
        T *taken = (T *)next;
        next += bytes_of<T>(n);
        return taken;
    }
};

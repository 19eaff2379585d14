// Activations to rows of tokens: a run of columns, side by side or so many apart, is a run of channels at one tap, or zeros where the tap is in
// the padding.

static uint16_t narrowed(float x) {  // to bfloat16, nearest even
    union { float f; uint32_t i; } u = {x};
    const uint32_t rounded = (u.i + 0x7fff + (u.i >> 16 & 1)) >> 16;
    return (uint16_t)(x == x ? rounded : 0x7fc0);
}

static inline float widened(uint16_t x) {
    union { uint32_t i; float f; } u = {(uint32_t)x << 16};
    return u.f;
}

// One number of y, in the dtype of x.
static inline void put(const sedaq_input &x, void *y, int64_t at, float value) {
    if (x.is_bf16)
        ((uint16_t *)y)[at] = narrowed(value);
    else
        ((float *)y)[at] = value;
}

// A token's image and the place of the output that it is.
struct Token {
    int64_t image, place[3];

    Token(const sedaq_input &x, int64_t token) {
        for (int d = 2; d >= 0; d--) {
            place[d] = token % x.out_size[d];
            token /= x.out_size[d];
        }
        image = token;
    }

    // What one of its taps sees; false in the padding.
    bool sees(const sedaq_input &x, int64_t tap, int64_t *p) const {
        bool inside = true;
        for (int d = 2; d >= 0; d--) {
            p[d] = place[d] * x.step[d] - x.padding[d] + tap % x.kernel[d] * x.dilation[d];
            tap /= x.kernel[d];
            inside = inside && p[d] >= 0 && p[d] < x.size[d];
        }
        return inside;
    }
};

static void copy_channels(const sedaq_input &x, int64_t at, int64_t n, float *out) {
    if (x.is_bf16)
        for (int64_t c = 0; c < n; c++) out[c] = widened(((const uint16_t *)x.data)[at + c]);
    else
        for (int64_t c = 0; c < n; c++) out[c] = ((const float *)x.data)[at + c];
}

static void scatter_channels(const sedaq_input &x, int64_t at, int64_t n, float *out, int64_t apart) {
    if (x.is_bf16)
        for (int64_t c = 0; c < n; c++) out[c * apart] = widened(((const uint16_t *)x.data)[at + c]);
    else
        for (int64_t c = 0; c < n; c++) out[c * apart] = ((const float *)x.data)[at + c];
}

static void gather_token(const sedaq_input &x, int64_t number, float *row) {
    const Token token(x, number);
    int64_t p[3];
    for (int32_t i = 0; i < x.n_runs; i++) {
        const sedaq_run &run = x.runs[i];
        const bool inside = token.sees(x, run.tap, p);
        const int64_t at = token.image * x.image_stride + p[0] * x.stride[0] + p[1] * x.stride[1] + p[2] * x.stride[2] + run.channel;
        if (!inside)
            for (int64_t c = 0; c < run.length; c++) row[run.first + c * run.apart] = 0;
        else if (run.apart == 1)
            copy_channels(x, at, run.length, row + run.first);
        else
            scatter_channels(x, at, run.length, row + run.first, run.apart);
    }
}

// A token's inputs where they already lie side by side, so that nothing has to be gathered; null elsewhere. Number is what they are.
template <class Number>
static const Number *ready_token(const sedaq_input &x, int64_t number, int64_t columns) {
    if (x.is_bf16 != (sizeof(Number) == 2) || x.n_runs != 1 || x.runs[0].length != columns || x.runs[0].tap != 0) return nullptr;
    const Token token(x, number);
    int64_t p[3];
    if (!token.sees(x, 0, p)) return nullptr;
    return (const Number *)x.data + token.image * x.image_stride + p[0] * x.stride[0] + p[1] * x.stride[1] + p[2] * x.stride[2] + x.runs[0].channel;
}

static int64_t places_of(const sedaq_input &x) { return x.images * x.size[0] * x.size[1] * x.size[2]; }

static int64_t tokens_of(const sedaq_input &x) { return x.images * x.out_size[0] * x.out_size[1] * x.out_size[2]; }

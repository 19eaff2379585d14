// Activations to rows of tokens: a run of columns is a run of channels at one tap, or zeros where the tap is in the padding.

static uint16_t narrowed(float x) {  // to bfloat16, nearest even
    union { float f; uint32_t i; } u = {x};
    if (x != x) return 0x7fc0;
    return (uint16_t)((u.i + 0x7fff + (u.i >> 16 & 1)) >> 16);
}

static inline float widened(uint16_t x) {
    union { uint32_t i; float f; } u = {(uint32_t)x << 16};
    return u.f;
}

static void gather_token(const sedaq_input &x, int64_t token, float *row) {
    int64_t place[3], rest = token;
    for (int d = 2; d >= 0; d--) {
        place[d] = rest % x.out_size[d];
        rest /= x.out_size[d];
    }
    for (int32_t i = 0; i < x.n_runs; i++) {
        const sedaq_run &run = x.runs[i];
        int64_t tap = run.tap, at = rest * x.image_stride + run.channel;
        bool inside = true;
        for (int d = 2; d >= 0; d--) {
            const int64_t p = place[d] * x.step[d] - x.padding[d] + tap % x.kernel[d] * x.dilation[d];
            tap /= x.kernel[d];
            inside = inside && p >= 0 && p < x.size[d];
            at += p * x.stride[d];
        }
        float *out = row + run.first;
        if (!inside)
            for (int64_t c = 0; c < run.length; c++) out[c] = 0;
        else if (x.is_bf16)
            for (int64_t c = 0; c < run.length; c++) out[c] = widened(((const uint16_t *)x.data)[at + c]);
        else
            for (int64_t c = 0; c < run.length; c++) out[c] = ((const float *)x.data)[at + c];
    }
}

static int64_t tokens_of(const sedaq_input &x) { return x.images * x.out_size[0] * x.out_size[1] * x.out_size[2]; }

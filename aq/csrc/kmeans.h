// k-means in the metric of each position.

struct Assignment {
    const sedaq_cloud &cloud;

    void add_masses(int64_t position, float *masses) const {
        for (int64_t r = position * cloud.n_vectors; r < (position + 1) * cloud.n_vectors; r++) masses[cloud.codes[r]] += cloud.mass[r];
    }
    void copy_block(int64_t position, float *block) const {
        const int64_t size = (int64_t)cloud.group_size * cloud.group_size;
        __builtin_memcpy(block, cloud.metric + position * size, (size_t)size * sizeof(float));
    }
};

enum { VECTORS_AT_ONCE = 32 };

// Codes of one position's vectors; `right` (K, g), where it is not null, gets mass · (vector · metric) of each.
static void assign_position(const sedaq_cloud &cloud, const Codebooks &centres, int64_t position, float *right, Arena arena) {
    const int64_t g = centres.g, width = centres.g_padded, base = position * cloud.n_vectors;
    const float *metric = cloud.metric + position * g * g;
    float *own = arena.take<float>(centres.k_padded), *negative = arena.take<float>(g * width), *zeros = arena.take<float>(width);
    float *linear = arena.take<float>(VECTORS_AT_ONCE * width);
    const float *from[VECTORS_AT_ONCE], *by[VECTORS_AT_ONCE];
    float *to[VECTORS_AT_ONCE], energy[VECTORS_AT_ONCE];
    int64_t codes[VECTORS_AT_ONCE];
    centres.own_energies(0, metric, g, own);
    __builtin_memset(negative, 0, (size_t)(g * width) * sizeof(float));
    __builtin_memset(zeros, 0, (size_t)width * sizeof(float));
    for (int64_t i = 0; i < g; i++)
        for (int64_t j = 0; j < g; j++) negative[i * width + j] = -metric[i * g + j];
    for (int64_t first = 0; first < cloud.n_vectors; first += VECTORS_AT_ONCE) {
        const int64_t n = smaller(VECTORS_AT_ONCE, cloud.n_vectors - first);
        for (int64_t r = 0; r < n; r++) from[r] = zeros, by[r] = cloud.vectors + (base + first + r) * g, to[r] = linear + r * width;
        add_products(n, to, from, by, negative, width, g, g);
        for (int64_t r = 0; r < n; r++) from[r] = to[r];
        nearest_of(centres, 0, own, n, from, energy, codes);
        for (int64_t r = 0; r < n; r++) {
            cloud.codes[base + first + r] = codes[r];
            const float mass = -cloud.mass[base + first + r];
            for (int64_t i = 0; i < g && right; i++) right[codes[r] * g + i] = multiply_add(mass, to[r][i], right[codes[r] * g + i]);
        }
    }
}

int assign(const sedaq_cloud &cloud, float *left, float *right, int threads) {
    if (cloud.group_size < 1 || cloud.n_centres < 1 || cloud.n_centres > 1 << 20) return 1;
    const Codebooks centres(1, cloud.n_centres, cloud.group_size, cloud.centres);
    const int64_t ranges = n_ranges(cloud.n_positions), size = centres.k * centres.g;
    const int64_t bytes = Arena::bytes_of<float>(centres.k_padded) + Arena::bytes_of<float>((centres.g + 1 + VECTORS_AT_ONCE) * centres.g_padded) + 256;
    Memory<float> sums(right ? ranges * size : 0);
    Memory<char> memory(threads * bytes);
    if (!centres.ok() || !sums.ok() || !memory.ok()) return 2;
    if (right) sums.clear();
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t range = 0; range < ranges; range++)
        for (int64_t position = range_start(cloud.n_positions, range); position < range_start(cloud.n_positions, range + 1); position++)
            assign_position(cloud, centres, position, right ? sums.data + range * size : nullptr, {memory.data + omp_get_thread_num() * bytes});
    if (!right) return 0;
    for (int64_t i = 0; i < size; i++) {
        right[i] = 0;
        for (int64_t range = 0; range < ranges; range++) right[i] += sums.data[range * size + i];
    }
    return sum_blocks(Assignment{cloud}, cloud.n_positions, centres.k, centres.g, left, threads);
}

// (left + ridge) x = right for one centre in place, in double: left (g, g) positive semi-definite. The ridge is a share of its mean diagonal.
static void solve_centre(const float *left, const float *right, int64_t g, double ridge, double *factor, float *centre) {
    for (int64_t i = 0; i < g; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = left[i * g + j] + (i == j ? ridge : 0);
            for (int64_t l = 0; l < j; l++) sum -= factor[i * g + l] * factor[j * g + l];
            factor[i * g + j] = i == j ? __builtin_sqrt(sum > ridge * 1e-6 ? sum : ridge * 1e-6) : sum / factor[j * g + j];
        }
    double x[64 + SEDAQ_LONGEST_GROUP];
    for (int64_t i = 0; i < g; i++) {
        x[i] = right[i];
        for (int64_t l = 0; l < i; l++) x[i] -= factor[i * g + l] * x[l];
        x[i] /= factor[i * g + i];
    }
    for (int64_t i = g; i-- > 0;) {
        for (int64_t l = i + 1; l < g; l++) x[i] -= factor[l * g + i] * x[l];
        x[i] /= factor[i * g + i];
        centre[i] = (float)x[i];
    }
}

int kmeans(const sedaq_cloud *clouds, int n_clouds, float *centres, const float *spares, int64_t n_spares, int iterations, int threads) {
    if (n_clouds < 1 || clouds[0].group_size > SEDAQ_LONGEST_GROUP || n_spares < 1) return 1;
    const int64_t g = clouds[0].group_size, k = clouds[0].n_centres, size = g * g;
    Memory<float> sums(2 * k * (size + g));
    Memory<double> factors(threads * size);
    if (!sums.ok() || !factors.ok()) return 2;
    float *left = sums.data, *right = left + k * size, *more = right + k * g;
    int64_t next = 0;
    for (int i = 0; i < iterations; i++) {
        for (int cloud = 0; cloud < n_clouds; cloud++) {
            float *to = cloud ? more : left;
            const int status = assign(clouds[cloud], to, to + k * size, threads);
            if (status) return status;
            for (int64_t j = 0; j < k * (size + g) && cloud; j++) left[j] += more[j];
        }
#pragma omp parallel for num_threads(threads) if (k * size > 4096)
        for (int64_t centre = 0; centre < k; centre++) {
            double mean = 0;
            for (int64_t j = 0; j < g; j++) mean += left[centre * size + j * (g + 1)] / (double)g;
            if (mean > 0) solve_centre(left + centre * size, right + centre * g, g, 1e-4 * mean, factors.data + omp_get_thread_num() * size, centres + centre * g);
        }
        for (int64_t centre = 0; centre < k; centre++) {
            double mean = 0;
            for (int64_t j = 0; j < g; j++) mean += left[centre * size + j * (g + 1)];
            if (mean > 0) continue;
            __builtin_memcpy(centres + centre * g, spares + next++ % n_spares * g, (size_t)g * sizeof(float));
        }
    }
    return 0;
}

// The encoder's loops on every instruction set against plain ones, for `make sanitize`: built with the address and undefined-behaviour sanitizers.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../../../aq/csrc/encoder.h"

static std::mt19937 rng(0);
typedef std::vector<float> Floats;

static Floats normal(int64_t n) {
    std::normal_distribution<float> draw;
    Floats x(n);
    for (float &value : x) value = draw(rng);
    return x;
}

// A x xᵀ of correlated numbers, (n, n), well away from singular.
static Floats moment(int64_t n) {
    const Floats x = normal(2 * n * n);
    Floats h(n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = i == j ? 0.3 : 0;
            for (int64_t t = 0; t < 2 * n; t++) sum += x[t * n + i] * x[t * n + j] / (2 * n);
            h[i * n + j] = (float)sum;
        }
    return h;
}

struct Case {
    int64_t s, r;
    std::vector<int64_t> widths;
    int m, k, g;
    int64_t within, across;
};

struct Problem {
    const Case &c;
    int64_t n = 0, groups;
    std::vector<Floats> blocks, factors;
    Floats w, weighted, scales, books;
    std::vector<int64_t> codes;
    std::vector<sedaq_block> views;

    explicit Problem(const Case &of) : c(of) {
        for (int64_t width : c.widths) {
            n += width;
            blocks.emplace_back();
            for (int64_t s = 0; s < c.s; s++) {
                const Floats h = moment(width);
                blocks.back().insert(blocks.back().end(), h.begin(), h.end());
            }
        }
        groups = n / c.g, factors = blocks;
        w = normal(c.s * c.r * n), scales = normal(c.s * c.r), books = normal((int64_t)c.m * c.k * c.g), codes.resize(c.s * c.r * groups * c.m);
        scales[0] = 0;
        weighted.resize(w.size());
        for (int64_t row = 0; row < c.s * c.r; row++)
            for (int64_t j = 0; j < n; j++) {
                double sum = 0;
                for (int64_t i = 0; i < n; i++) sum += w[row * n + i] * h(row / c.r, i, j);
                weighted[row * n + j] = (float)sum;
            }
        for (int64_t &code : codes) code = rng() % c.k;
    }
    sedaq_part part(const std::vector<Floats> &of) {
        views.clear();
        for (size_t i = 0; i < of.size(); i++) views.push_back({of[i].data(), c.widths[i], c.widths[i] * c.widths[i], c.widths[i]});
        return {c.s, c.r, n, c.g, c.m, c.k, (int32_t)views.size(), views.data(), w.data(), weighted.data(), scales.data(), books.data(), codes.data()};
    }
    double h(int64_t s, int64_t i, int64_t j) const {
        int64_t first = 0;
        for (size_t b = 0; b < blocks.size(); first += c.widths[b++])
            if (i >= first && j >= first && i < first + c.widths[b] && j < first + c.widths[b]) return blocks[b][(s * c.widths[b] + i - first) * c.widths[b] + j - first];
        return 0;
    }
    double u(int64_t row, int64_t i) const {
        double sum = 0;
        for (int m = 0; m < c.m; m++) sum += books[(m * c.k + codes[(row * groups + i / c.g) * c.m + m]) * c.g + i % c.g];
        return sum;
    }
    // x H yᵀ of one row, x and y: 0 u, 1 w, 2 scale · u − w
    double form(int64_t row, int x, int y) const {
        std::vector<double> a(n), b(n);
        for (int64_t i = 0; i < n; i++) {
            const double words = u(row, i), weight = w[row * n + i], values[3] = {words, weight, scales[row] * words - weight};
            a[i] = values[x], b[i] = values[y];
        }
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) sum += a[i] * h(row / c.r, i, j) * b[j];
        return sum;
    }
    double error() const {
        double sum = 0;
        for (int64_t row = 0; row < c.s * c.r; row++) sum += form(row, 2, 2);
        return sum;
    }
};

static bool near(double a, double b, double size) { return std::abs(a - b) <= 1e-3 * size + 1e-4; }

static int check_sums(int isa, Problem &p) {
    const Case &c = p.c;
    sedaq_part part = p.part(p.blocks);
    std::vector<double> forms(2 * c.s * c.r);
    Floats sums((int64_t)c.m * c.k * c.g), carried(sums.size() * c.g), products(p.w.size());
    if (sedaq_products(isa, &part, products.data(), 2) || sedaq_forms(isa, &part, forms.data(), 2) || sedaq_sums_by_code(isa, &part, sums.data(), 2) || sedaq_carried_by_code(isa, &part, carried.data(), 2)) return 1;
    int failures = 0;
    for (size_t i = 0; i < products.size(); i++) failures += !near(products[i], p.weighted[i], 1 + std::abs(p.weighted[i]));
    double product = 0, wanted = 0;  // Σ books · sums = Σ s² u H uᵀ over codebooks
    for (int64_t row = 0; row < c.s * c.r; row++) {
        const double energy = p.form(row, 0, 0), cross = p.form(row, 0, 1);
        failures += !near(forms[2 * row], energy, energy) + !near(forms[2 * row + 1], cross, energy + std::abs(cross));
        wanted += (double)p.scales[row] * p.scales[row] * energy;
    }
    for (size_t i = 0; i < sums.size(); i++) product += (double)p.books[i] * sums[i];
    // without codebooks, of the weights: Σ books · sums = Σ s w H uᵀ
    sedaq_part weights = part;
    weights.codebooks = nullptr;
    if (sedaq_sums_by_code(isa, &weights, sums.data(), 2)) return 1;
    double of_weights = 0, crossed = 0, size = 0;
    for (size_t i = 0; i < sums.size(); i++) of_weights += (double)p.books[i] * sums[i];
    for (int64_t row = 0; row < c.s * c.r; row++) crossed += p.scales[row] * p.form(row, 0, 1), size += std::abs(p.scales[row]) * (p.form(row, 0, 0) + p.form(row, 1, 1));
    failures += !near(of_weights, crossed, size);
    double trace = 0, whole = 0;
    for (int64_t i = 0; i < (int64_t)carried.size(); i++) trace += i % (c.g * c.g) % (c.g + 1) == 0 ? carried[i] : 0;
    for (int64_t row = 0; row < c.s * c.r; row++)
        for (int64_t i = 0; i < p.n; i++) whole += (double)p.scales[row] * p.scales[row] * p.h(row / c.r, i, i) * c.m;
    return failures + !near(product, wanted, wanted) + !near(trace, whole, whole);
}

static int check_passes(int isa, Problem &p) {
    sedaq_part h = p.part(p.blocks);
    const double before = p.error();
    int failures = sedaq_improve(isa, &h, p.c.within, 2);
    const double improved = p.error();
    failures += !(improved <= before * 1.0001);
    for (size_t b = 0; b < p.factors.size(); b++)
        for (int64_t s = 0; s < p.c.s; s++) failures += sedaq_factor(isa, p.factors[b].data() + s * p.c.widths[b] * p.c.widths[b], p.c.widths[b], 2);
    sedaq_part factor = p.part(p.factors);
    failures += sedaq_encode(isa, &factor, p.c.within, p.c.across, 3);
    failures += !(p.error() <= before * 1.0001);
    p.codes[p.codes.size() / 2] = p.c.k;
    return failures + (sedaq_improve(isa, &h, 1, 1) != 1) + (sedaq_sums_by_code(isa, &h, nullptr, 1) != 1);
}

static int check_assignment(int isa, int64_t positions, int64_t rows, int k, int g) {
    const Floats vectors = normal(positions * rows * g), mass = normal(positions * rows), centres = normal((int64_t)k * g);
    Floats metric, left((int64_t)k * g * g), right((int64_t)k * g);
    for (int64_t i = 0; i < positions; i++) {
        const Floats h = moment(g);
        metric.insert(metric.end(), h.begin(), h.end());
    }
    std::vector<int64_t> codes(positions * rows);
    const sedaq_cloud cloud = {positions, rows, g, k, vectors.data(), metric.data(), mass.data(), centres.data(), codes.data()};
    if (sedaq_assign(isa, &cloud, left.data(), right.data(), 2)) return 1;
    int failures = 0;
    for (int64_t v = 0; v < positions * rows; v++) {
        double least = INFINITY, found = 0;
        for (int64_t centre = 0; centre < k; centre++) {
            double distance = 0;
            for (int i = 0; i < g; i++)
                for (int j = 0; j < g; j++)
                    distance += (vectors[v * g + i] - centres[centre * g + i]) * metric[(v / rows * g + i) * g + j] * (vectors[v * g + j] - centres[centre * g + j]);
            least = std::fmin(least, distance);
            if (centre == codes[v]) found = distance;
        }
        failures += !near(found, least, least);
    }
    return failures;
}

int main() {
    const Case cases[] = {{1, 1, {4}, 1, 2, 4, 1, 1},       {1, 13, {40}, 1, 16, 4, 1, 2},  {1, 7, {20, 13}, 2, 5, 3, 4, 3}, {5, 1, {9}, 1, 20, 3, 1, 4},
                          {2, 6, {150}, 3, 17, 5, 8, 1},    {1, 3, {34}, 2, 8, 17, 40, 2},  {1, 70, {130}, 1, 300, 2, 1, 1}, {1, 5, {96}, 6, 8, 32, 8, 2}};
    int failures = 0, run = 0;
    for (int isa = 0; isa < SEDAQ_N_ISAS; isa++) {
        if (!sedaq_encoder_has(isa)) continue;
        for (const Case &c : cases) {
            Problem p(c);
            const int failed = check_sums(isa, p) + check_passes(isa, p);
            if (failed) std::printf("isa %d, %ld x %ld x %ld, %dx%dg%d: %d failures\n", isa, (long)c.s, (long)c.r, (long)p.n, c.m, c.k, c.g, failed);
            failures += failed, run++;
        }
        failures += check_assignment(isa, 3, 40, 7, 2) + check_assignment(isa, 1, 1, 1, 8) + check_assignment(isa, 70, 5, 33, 3), run++;
    }
    failures += sedaq_encode(SEDAQ_N_ISAS, nullptr, 1, 1, 1) != 1;
    std::printf("%d cases of the encoder's loops, %d failures\n", run, failures);
    return failures || !run;
}

// Up to FEW tokens by tables of bytes in registers: one instruction looks 64 rows up in 128 entries. Needs AVX-512 VBMI. Included after
// lookup.h, whose units and sums these are.

enum { LANES = 64 };  // rows that are looked up at once, and codes of them that are transposed at once

// Codes of 64 rows, from (row, code) to (code, row): byte 16 l + 4 q + r of a code's vector is row 16 q + 4 l + r.
static void transpose_codes(const uint8_t *codes, int64_t stride, int64_t n_rows, int64_t n, uint8_t *out) {
    const __mmask64 wanted = n < LANES ? ((__mmask64)1 << n) - 1 : ~(__mmask64)0;
    const __m512i by_code = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i quarters[4][16];
    for (int q = 0; q < 4; q++) {
        for (int r = 0; r < 16; r++) {
            const int64_t row = smaller(16 * q + r, n_rows - 1);  // what lanes beyond the last row hold is not looked at
            quarters[q][r] = _mm512_maskz_loadu_epi8(wanted, codes + row * stride);
        }
        transpose(quarters[q]);
    }
    for (int d = 0; d < 16; d++, out += 4 * LANES) {
        __m512i x[4];
        for (int q = 0; q < 4; q++) x[q] = _mm512_shuffle_epi8(quarters[q][d], by_code);
        const __m512i low01 = _mm512_unpacklo_epi32(x[0], x[1]), high01 = _mm512_unpackhi_epi32(x[0], x[1]);
        const __m512i low23 = _mm512_unpacklo_epi32(x[2], x[3]), high23 = _mm512_unpackhi_epi32(x[2], x[3]);
        _mm512_storeu_si512(out, _mm512_unpacklo_epi64(low01, low23));
        _mm512_storeu_si512(out + LANES, _mm512_unpackhi_epi64(low01, low23));
        _mm512_storeu_si512(out + 2 * LANES, _mm512_unpacklo_epi64(high01, high23));
        _mm512_storeu_si512(out + 3 * LANES, _mm512_unpackhi_epi64(high01, high23));
    }
}

// Entries of one table at 64 codes. ENTRIES is 64, 128 or 256.
template <int ENTRIES>
static inline __m512i entries_at(const uint8_t *table, __m512i codes) {
    const __m512i first = _mm512_load_si512(table);
    if (ENTRIES == 64) return _mm512_permutexvar_epi8(codes, first);
    const __m512i low = _mm512_permutex2var_epi8(first, codes, _mm512_load_si512(table + 64 % ENTRIES));
    if (ENTRIES == 128) return low;
    const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128 % ENTRIES), codes, _mm512_load_si512(table + 192 % ENTRIES));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}

// Adds to sums[lane] the entries of n tables, at most LANES.
template <int ENTRIES>
static void add_entries(const uint8_t *tables, const uint8_t *codes, int64_t n, int32_t *sums) {
    __m512i all = _mm512_setzero_si512(), odd = all;
    for (int64_t c = 0; c < n; c++) {
        const __m512i entry = entries_at<ENTRIES>(tables + c * ENTRIES, _mm512_load_si512(codes + c * LANES));
        all = _mm512_add_epi16(all, entry);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(entry, 8));
    }
    const __m512i even = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8)), low = _mm512_set1_epi32(0xffff);
    // Byte b of a dword is lane 4 i + b.
    const __m512i parts[4] = {_mm512_and_si512(even, low), _mm512_and_si512(odd, low), _mm512_srli_epi32(even, 16), _mm512_srli_epi32(odd, 16)};
    for (int b = 0; b < 4; b++) _mm512_storeu_si512(sums + 16 * b, _mm512_add_epi32(_mm512_loadu_si512(sums + 16 * b), parts[b]));
}

struct PermuteProduct {
    LookupProduct<4> product;
    const sedaq_matrix &m;
    const sedaq_input &x;
    int64_t n_tokens, entries;  // of a table, as registers hold them

    PermuteProduct(const sedaq_matrix &matrix, const sedaq_input &input) : product(matrix, input), m(matrix), x(input), n_tokens(tokens_of(input)) {
        entries = m.n_entries <= 64 ? 64 : m.n_entries <= 128 ? 128 : 256;
    }

    // The table of one token at one code, from codebooks with codewords side by side.
    void fill(int64_t code, const float *books, const float *row, uint8_t *table) const {
        const float *group = row + code / m.n_codebooks * m.group_size, *words = books + code % m.n_codebooks * m.group_size * entries;
        for (int64_t k = 0; k < entries; k += 64) {
            __m512 sums[4];
            for (int q = 0; q < 4; q++) sums[q] = _mm512_set1_ps(Entry<4>::MIDDLE);
            for (int64_t i = 0; i < m.group_size; i++) {
                const __m512 of_group = _mm512_set1_ps(group[i]);
                for (int q = 0; q < 4; q++) sums[q] = _mm512_fmadd_ps(of_group, _mm512_load_ps(words + i * entries + k + 16 * q), sums[q]);
            }
            for (int q = 0; q < 4; q++)
                _mm_store_si128((__m128i *)(table + k + 16 * q), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_max_ps(sums[q], _mm512_setzero_ps()))));
        }
    }

    int run(void *y, int64_t y_stride, int threads) {
        const int64_t n_codes = product.n_codes, columns = product.columns, of_books = m.n_codebooks * m.group_size * entries;
        if (!of_call.reserve(Scratch::bytes_of<float>(of_books) + Scratch::bytes_of<float>(n_tokens * columns) +
                             Scratch::bytes_of<uint8_t>(n_tokens * n_codes * entries)))
            return 2;
        float *books = of_call.take<float>(of_books), *rows = of_call.take<float>(n_tokens * columns), scales[FEW];
        uint8_t *tables = of_call.take<uint8_t>(n_tokens * n_codes * entries);
        product.transpose_books(books, entries, SEDAQ_FREE);
        for (int64_t t = 0; t < n_tokens; t++) {
            float *row = rows + t * columns;
            for (int64_t i = m.n_in; i < columns; i++) row[i] = 0;
            gather_token(x, t, row);
            scales[t] = product.scale(row);
        }
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_tokens * n_codes; i++) fill(i % n_codes, books, rows + i / n_codes * columns, tables + i * entries);
#pragma omp for schedule(static)
            for (int64_t row = 0; row < m.n_out; row += LANES) {
                int32_t sums[FEW][LANES] = {};
                add_rows(row, tables, sums[0]);
                finish(row, sums[0], scales, y, y_stride);
            }
        }
        return 0;
    }

    // All codes of 64 rows; those of the next rows are fetched ahead.
    void add_rows(int64_t row, const uint8_t *tables, int32_t *sums) const {
        const int64_t n_codes = product.n_codes, n_rows = smaller(LANES, m.n_out - row);
        const uint8_t *codes = (const uint8_t *)m.codes + row * n_codes;
        alignas(64) uint8_t transposed[LANES * LANES];
        for (int64_t c = 0; c < n_codes; c += LANES) {
            const int64_t n = smaller(LANES, n_codes - c);
            for (int64_t r = 0; r < LANES; r++) __builtin_prefetch(codes + LANES * (n_codes + c + r), 0, 2);
            transpose_codes(codes + c, n_codes, n_rows, n, transposed);
            for (int64_t t = 0; t < n_tokens; t++) {
                const uint8_t *of_token = tables + (t * n_codes + c) * entries;
                if (entries == 64)
                    add_entries<64>(of_token, transposed, n, sums + t * LANES);
                else if (entries == 128)
                    add_entries<128>(of_token, transposed, n, sums + t * LANES);
                else
                    add_entries<256>(of_token, transposed, n, sums + t * LANES);
            }
        }
    }

    void finish(int64_t row, const int32_t *sums, const float *scales, void *y, int64_t y_stride) const {
        const int64_t n_rows = smaller(LANES, m.n_out - row);
        const __m512i place = _mm512_setr_epi32(0, 16, 32, 48, 4, 20, 36, 52, 8, 24, 40, 56, 12, 28, 44, 60);  // of rows 0 … 15 in sums
        const __m512i offset = _mm512_set1_epi32((int32_t)Entry<4>::offset(product.n_codes));
        for (int64_t t = 0; t < n_tokens; t++) {
            float values[LANES];
            for (int q = 0; q < 4; q++) {
                const __m512i of_rows = _mm512_i32gather_epi32(place, sums + t * LANES + q, 4);
                _mm512_storeu_ps(values + 16 * q, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(of_rows, offset)), _mm512_set1_ps(scales[t])));
            }
            for (int64_t r = 0; r < n_rows; r++)
                put(x, y, t * y_stride + row + r, values[r] * m.scales[row + r] + (m.bias ? m.bias[row + r] : 0));
        }
    }
};

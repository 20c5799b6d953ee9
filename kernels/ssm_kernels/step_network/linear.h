/* Linear maps: y = activation(W x + b), weights in one of three formats. */
/* A pool's maps read and write the arena. */
INLINE const float *source(const instruction *i, const group *g, int64_t b) {
    return i->state < 0 ? scratch_of(g, b) + i->from : arena_of(g, b) + i->state;
}
INLINE float *target(const instruction *i, const group *g, int64_t b) {
    return i->other < 0 ? scratch_of(g, b) + i->to : arena_of(g, b) + i->other;
}

/* int8 weights of two columns side by side, as 16-bit integers, and their products with two inputs. */
#if defined(__AVX512BW__)
typedef __m512i wide_pairs;
INLINE wide_pairs widen(const int8_t *w) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w)); }
INLINE ivec add_products(ivec sum, wide_pairs w, const int16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpwssd_epi32((__m512i)sum, w, _mm512_set1_epi32(pair));
#else
    return sum + (ivec)_mm512_madd_epi16(w, _mm512_set1_epi32(pair));
#endif
}
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256i wide_pairs;
INLINE wide_pairs widen(const int8_t *w) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w)); }
INLINE ivec add_products(ivec sum, wide_pairs w, const int16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return sum + (ivec)_mm256_madd_epi16(w, _mm256_set1_epi32(pair));
}
#else
typedef const int8_t *wide_pairs;
INLINE wide_pairs widen(const int8_t *w) { return w; }
INLINE ivec add_products(ivec sum, wide_pairs w, const int16_t *x) {
    for (int l = 0; l < LANES; ++l) sum[l] += w[2 * l] * x[0] + w[2 * l + 1] * x[1];
    return sum;
}
#endif
/* x as integers of at most 15 bits, fewer where k products of them could overflow; returns what one of them is worth. */
static float quantise(const float *x, int64_t k, int16_t *to) {
    float most = 0;
    for (int64_t j = 0; j < k; ++j) most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
    const float limit = k <= 512 ? 32767.0f : 32767.0f * 512 / (float)k, rate = most > 0 ? limit / most : 0;
    for (int64_t j = 0; j < k; ++j) to[j] = (int16_t)rintf(x[j] * rate);
    return most / limit;
}

/* Rows of weights against S streams: P of the R registers of a block of rows, times all columns. U independent sums hide
 * the latency of the additions; the order of a stream's additions depends on R alone. sum is (S, P). */
INLINE void rows_float32(
    const float *w, const float *const *x, int64_t k, vec *sum, const int R, const int P, const int S, const int U) {
    vec s[16] = {0};
    int64_t j = 0;
    for (; j + U <= k; j += U, w += U * R * LANES)
        for (int u = 0; u < U; ++u)
            for (int r = 0; r < P; ++r) {
                const vec row = get(w + (u * R + r) * LANES);
                for (int b = 0; b < S; ++b) s[(u * S + b) * P + r] += row * x[b][j + u];
            }
    for (; j < k; ++j, w += R * LANES)
        for (int r = 0; r < P; ++r)
            for (int b = 0; b < S; ++b) s[b * P + r] += get(w + r * LANES) * x[b][j];
    for (int n = 0; n < S * P; ++n) {
        sum[n] = s[n];
        for (int u = 1; u < U; ++u) sum[n] += s[u * S * P + n];
    }
}
INLINE void rows_bfloat16(
    const uint32_t *w, const float *const *x, int64_t k, vec *sum, const int R, const int P, const int S) {
    vec s[16] = {0};
    for (int64_t j = 0; j < k; j += 2, w += R * LANES)
        for (int r = 0; r < P; ++r) {
            ivec pair;
            memcpy(&pair, w + r * LANES, sizeof pair);
            const vec even = (vec)(pair << 16), odd = (vec)(pair & (int32_t)0xffff0000);
            for (int b = 0; b < S; ++b) {
                s[2 * (b * P + r)] += even * x[b][j];
                s[2 * (b * P + r) + 1] += odd * x[b][j + 1];
            }
        }
    for (int n = 0; n < S * P; ++n) sum[n] = s[2 * n] + s[2 * n + 1];
}
/* Columns k and k + 1 side by side, times the inputs as 16-bit integers: exact sums of products of integers. */
INLINE void rows_int8(
    const int8_t *w, const int16_t *const *x, int64_t k, ivec *sum, const int R, const int P, const int S) {
    for (int n = 0; n < S * P; ++n) sum[n] = (ivec){0};
    for (int64_t j = 0; j < k; j += 2, w += 2 * R * LANES)
        for (int r = 0; r < P; ++r) {
            const wide_pairs row = widen(w + 2 * r * LANES);
            for (int b = 0; b < S; ++b) sum[b * P + r] = add_products(sum[b * P + r], row, x[b] + j);
        }
}

/* A block of R registers of rows for S streams; the inputs of an int8 map stand in g->whole and are worth `worth` each. */
INLINE void block_of_rows(
    const instruction *i, const group *g, const char *w, const float *scale, const float *worth, int64_t first, vec *sum,
    const int R, const int S) {
    const int P = S > 1 && R > 1 ? R / 2 : R, U = R >= 8 ? 1 : R >= 4 ? 2 : 4;
    const int width = i->format == FLOAT32 ? 4 : i->format == BFLOAT16 ? 4 : 2; /* bytes of a lane, of one column or two */
    const float *x[2];
    const int16_t *whole[2];
    for (int b = 0; b < S; ++b) x[b] = source(i, g, first + b), whole[b] = g->whole + (first + b) * i->k;
    for (int part = 0; part < R; part += P) {
        const char *rows = w + part * LANES * width;
        vec s[8];
        if (i->format == FLOAT32) rows_float32((const float *)rows, x, i->k, s, R, P, S, U);
        else if (i->format == BFLOAT16) rows_bfloat16((const uint32_t *)rows, x, i->k, s, R, P, S);
        else {
            ivec sums[8];
            rows_int8((const int8_t *)rows, whole, i->k, sums, R, P, S);
            for (int b = 0; b < S; ++b)
                for (int r = 0; r < P; ++r)
                    s[b * P + r] = __builtin_convertvector(sums[b * P + r], vec) * get(scale + (part + r) * LANES)
                        * worth[first + b];
        }
        for (int b = 0; b < S; ++b)
            for (int r = 0; r < P; ++r) sum[b * R + part + r] = s[b * P + r];
    }
}

INLINE void finish_rows(const instruction *i, vec *s, const float *bias, float *to, const int R) {
    const int gated = i->activation == GLU || i->activation == GLU_ADDED, H = gated ? R / 2 : R;
    for (int r = 0; r < R; ++r) s[r] += get(bias + r * LANES);
    for (int r = 0; r < H; ++r, to += LANES) {
        if (i->activation == GELU) s[r] = gelu(s[r]);
        else if (gated) s[r] *= sigmoid(s[r + H]);
        if (i->activation >= ADDED) s[r] += get(to);
        put(to, s[r]);
    }
}

INLINE void linear_blocks(const instruction *i, const group *g, const int R) {
    const int gated = i->activation == GLU || i->activation == GLU_ADDED, H = gated ? R / 2 : R;
    const size_t bytes = (size_t)i->k * R * LANES * (i->format == FLOAT32 ? 4 : i->format == BFLOAT16 ? 2 : 1);
    const char *w = i->w;
    const float *bias = i->bias, *scale = i->scale;
    float worth[MOST_TOGETHER];
    if (i->format == INT8) STREAMS(b, g) worth[b] = quantise(source(i, g, b), i->k, g->whole + b * i->k);
    for (int64_t c = 0; c < i->n; c += H * LANES, bias += R * LANES, scale += R * LANES, w += bytes) {
        vec sum[16];
        int64_t b = 0;
        for (; b + 2 <= g->size; b += 2) {
            block_of_rows(i, g, w, scale, worth, b, sum, R, 2);
            finish_rows(i, sum, bias, target(i, g, b) + c, R);
            finish_rows(i, sum + R, bias, target(i, g, b + 1) + c, R);
        }
        if (b < g->size) {
            block_of_rows(i, g, w, scale, worth, b, sum, R, 1);
            finish_rows(i, sum, bias, target(i, g, b) + c, R);
        }
    }
}
static void linear(const instruction *i, const group *g) {
    if (i->block == 8) linear_blocks(i, g, 8);
    else if (i->block == 4) linear_blocks(i, g, 4);
    else if (i->block == 2) linear_blocks(i, g, 2);
    else linear_blocks(i, g, 1);
}

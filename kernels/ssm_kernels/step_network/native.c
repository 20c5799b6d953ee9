/* One token at a time through a whole network: a small machine that runs a packed program.
 *
 * A program is a list of instructions over vectors of channels (norms, linear maps, recurrences) and one jump: POOL keeps
 * tokens until a group is complete and skips the slower tier until then. Weights are packed once, in the order in which
 * they are read, and shared; what a stream remembers lies in an arena of its own, so that streams run side by side on
 * threads, and a stream's numbers do not depend on its neighbours. The next token is drawn here too: a Python call pays
 * for many tokens.
 *
 * Vectors of channels are padded to whole vector registers. A linear map's rows are cut into blocks of R registers, and
 * for each block its columns follow one another:  w[block][k][R][LANES], as float32, as bfloat16 (columns k and k + 1 in
 * the halves of one 32-bit lane), or as int8 with a scale a row (k and k + 1 side by side).
 */
#include "../native_common.h"

enum { EMBED, NORM, LINEAR, S4D, S4, CONV, SCAN, SCAN_PAIRS, ADD, COPY, GATE, POOL, RECALL, END };
enum { FLOAT32, BFLOAT16, INT8 };
enum { NONE, GELU, GLU, ADDED, GLU_ADDED };

typedef struct {
    int64_t op, n, k;                /* channels out, channels in (or poles, taps, factor) */
    int64_t from, to, state, other;  /* offsets, in floats: scratch, scratch, arena, either */
    int64_t activation, format, block, jump, phase;
    const void *w;
    const float *scale, *bias;
} instruction;

typedef struct {
    int64_t streams, count, threads, levels, arena, scratch, integers, logits, start; /* sizes in floats and integers */
    int64_t sampled, top_k; /* whether tokens are drawn, or all given */
    double temperature, top_p;
    const instruction *program;
    float *arenas;             /* (streams, arena) */
    int64_t *registers;        /* (streams, integers): newest token, position, then the phases of the pools */
    const uint64_t *seeds;     /* (streams,) */
    const int64_t *given;      /* (streams, count) or NULL */
    int64_t *drawn;            /* (streams, count) or NULL */
    float *log_likelihood;     /* (streams, count), of what was drawn; or NULL */
    float *logits_out;         /* (streams, count, levels) or NULL */
} problem;

/* ---- elementary functions ---- */
/* x Phi(x), with erfc by Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7). */
INLINE vec gelu(vec x) {
    vec a = vabs(x) * 0.7071067811865476f, t = reciprocal(1 + 0.3275911f * a);
    vec p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vec tail = p * t * exp2_small(at_least(a * a * -1.4426950408889634f, -EXP2_LIMIT)) * 0.5f;
    return x * choose(x < (vec){0}, tail, 1 - tail);
}
INLINE vec silu(vec x) { return x * sigmoid(x); }
#define WHOLE(n) (((n) + LANES - 1) / LANES * LANES)
#define EACH(i, n) for (int64_t i = 0; i < (n); i += LANES)
INLINE vec get(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void put(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* ---- linear maps ---- */
#if defined(__AVX512BW__)
INLINE ivec add_products(ivec sum, const int8_t *w, int32_t pair) {
    const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpwssd_epi32((__m512i)sum, wide, _mm512_set1_epi32(pair));
#else
    return sum + (ivec)_mm512_madd_epi16(wide, _mm512_set1_epi32(pair));
#endif
}
#elif defined(__AVX2__)
#include <immintrin.h>
INLINE ivec add_products(ivec sum, const int8_t *w, int32_t pair) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
    return sum + (ivec)_mm256_madd_epi16(wide, _mm256_set1_epi32(pair));
}
#else
INLINE ivec add_products(ivec sum, const int8_t *w, int32_t pair) {
    int16_t x[2];
    memcpy(x, &pair, sizeof x);
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

/* R registers of rows times all columns; U independent sums hide the latency of the additions. */
INLINE void rows_float32(const float *w, const float *x, int64_t k, vec *sum, const int R, const int U) {
    vec s[8 * 4] = {0};
    int64_t j = 0;
    for (; j + U <= k; j += U, w += U * R * LANES)
        for (int u = 0; u < U; ++u)
            for (int r = 0; r < R; ++r) s[u * R + r] += get(w + (u * R + r) * LANES) * x[j + u];
    for (; j < k; ++j, w += R * LANES)
        for (int r = 0; r < R; ++r) s[r] += get(w + r * LANES) * x[j];
    for (int r = 0; r < R; ++r) {
        sum[r] = s[r];
        for (int u = 1; u < U; ++u) sum[r] += s[u * R + r];
    }
}
INLINE void rows_bfloat16(const uint32_t *w, const float *x, int64_t k, vec *sum, const int R) {
    vec s[8 * 2] = {0};
    for (int64_t j = 0; j < k; j += 2, w += R * LANES)
        for (int r = 0; r < R; ++r) {
            ivec pair;
            memcpy(&pair, w + r * LANES, sizeof pair);
            s[2 * r] += (vec)(pair << 16) * x[j];
            s[2 * r + 1] += (vec)(pair & (int32_t)0xffff0000) * x[j + 1];
        }
    for (int r = 0; r < R; ++r) sum[r] = s[2 * r] + s[2 * r + 1];
}
/* Columns k and k + 1 side by side, times the inputs as 16-bit integers: exact sums of products of integers. */
INLINE void rows_int8(const int8_t *w, const int16_t *x, int64_t k, ivec *sum, const int R) {
    for (int r = 0; r < R; ++r) sum[r] = (ivec){0};
    for (int64_t j = 0; j < k; j += 2, w += 2 * R * LANES) {
        int32_t both;
        memcpy(&both, x + j, sizeof both);
        for (int r = 0; r < R; ++r) sum[r] = add_products(sum[r], w + 2 * r * LANES, both);
    }
}

INLINE void linear_blocks(const instruction *i, const float *x, float *y, const int R) {
    const int gated = i->activation == GLU || i->activation == GLU_ADDED, H = gated ? R / 2 : R;
    const int U = R >= 8 ? 1 : R >= 4 ? 2 : 4;
    const size_t width = i->format == FLOAT32 ? 4 : i->format == BFLOAT16 ? 2 : 1;
    const char *w = i->w;
    const float *bias = i->bias, *scale = i->scale;
    int16_t whole_x[i->format == INT8 ? i->k : 1];
    const float worth = i->format == INT8 ? quantise(x, i->k, whole_x) : 1;
    for (int64_t c = 0; c < i->n; c += H * LANES, bias += R * LANES, w += (size_t)i->k * R * LANES * width) {
        vec s[8];
        if (i->format == FLOAT32) rows_float32((const float *)w, x, i->k, s, R, U);
        else if (i->format == BFLOAT16) rows_bfloat16((const uint32_t *)w, x, i->k, s, R);
        else {
            ivec sums[8];
            rows_int8((const int8_t *)w, whole_x, i->k, sums, R);
            for (int r = 0; r < R; ++r) s[r] = __builtin_convertvector(sums[r], vec) * get(scale + r * LANES) * worth;
            scale += R * LANES;
        }
        for (int r = 0; r < R; ++r) s[r] += get(bias + r * LANES);
        for (int r = 0; r < H; ++r) {
            float *to = y + c + r * LANES;
            if (i->activation == GELU) s[r] = gelu(s[r]);
            else if (gated) s[r] *= sigmoid(s[r + H]);
            if (i->activation >= ADDED) s[r] += get(to);
            put(to, s[r]);
        }
    }
}
static void linear(const instruction *i, const float *x, float *y) {
    if (i->block == 8) linear_blocks(i, x, y, 8);
    else if (i->block == 4) linear_blocks(i, x, y, 4);
    else if (i->block == 2) linear_blocks(i, x, y, 2);
    else linear_blocks(i, x, y, 1);
}

/* ---- the other instructions ---- */
static void layer_norm(const instruction *i, const float *x, float *y) {
    vec sum = {0}, squares = {0};
    EACH(c, i->n) sum += load(x + c, (int)(i->n - c));
    const float mean = lane_sum(sum) / (float)i->n;
    EACH(c, i->n) {
        vec d = load(x + c, (int)(i->n - c)) - mean;
        if (i->n - c < LANES)
            for (int l = (int)(i->n - c); l < LANES; ++l) d[l] = 0;
        squares += d * d;
    }
    const float rate = 1 / sqrtf(lane_sum(squares) / (float)i->n + i->scale[0]), centre = mean - i->scale[1];
    const float *w = i->w;
    EACH(c, i->n) put(y + c, (get(x + c) - centre) * rate * get(w + c) + get(i->bias + c)); /* padding of w and bias: 0 */
}

/* h = a h + x, y = Re(C h) + D x, with gelu where asked; coefficients (block, k, 4, LANES), state (block, k, 2, LANES). */
static void diagonal(const instruction *i, const float *x, float *h, float *y) {
    const float *w = i->w;
    EACH(c, i->n) {
        const vec u = get(x + c);
        vec even = u * get(i->bias + c), odd = {0};
        for (int64_t j = 0; j < i->k; ++j, w += 4 * LANES, h += 2 * LANES) {
            const vec ar = get(w), ai = get(w + LANES), re = get(h), im = get(h + LANES);
            const vec nr = ar * re - ai * im + u, ni = ar * im + ai * re;
            put(h, nr), put(h + LANES, ni);
            even += get(w + 2 * LANES) * nr;
            odd += get(w + 3 * LANES) * ni;
        }
        put(y + c, i->activation == GELU ? gelu(even + odd) : even + odd);
    }
}

/* The same with a low rank:  s = q . h + u q0 (a real number a channel),  h = e h + x - f s,  y = gelu(Re(C h) + D x).
 * coefficients (block, k, 8, LANES): e, f, q, C; scale (block, LANES): q0. */
static void low_rank(const instruction *i, const float *x, float *h, float *y) {
    const float *w = i->w;
    EACH(c, i->n) {
        const vec u = get(x + c);
        vec s = u * get(i->scale + c), t = {0}, even = u * get(i->bias + c), odd = {0};
        for (int64_t j = 0; j < i->k; ++j) {
            s += get(w + (8 * j + 4) * LANES) * get(h + 2 * j * LANES);
            t += get(w + (8 * j + 5) * LANES) * get(h + (2 * j + 1) * LANES);
        }
        s += t;
        for (int64_t j = 0; j < i->k; ++j, w += 8 * LANES, h += 2 * LANES) {
            const vec er = get(w), ei = get(w + LANES), re = get(h), im = get(h + LANES);
            const vec nr = er * re - ei * im + u - get(w + 2 * LANES) * s;
            const vec ni = er * im + ei * re - get(w + 3 * LANES) * s;
            put(h, nr), put(h + LANES, ni);
            even += get(w + 6 * LANES) * nr;
            odd += get(w + 7 * LANES) * ni;
        }
        put(y + c, gelu(even + odd));
    }
}

/* y = silu(bias + sum_j w_j x_j) over the last k inputs, in place; the arena holds k - 1 of them, oldest first. */
static void short_conv(const instruction *i, float *x, float *window) {
    const float *w = i->w;
    const int64_t n = WHOLE(i->n), last = i->k - 1;
    EACH(c, i->n) {
        const vec u = get(x + c);
        vec s = get(i->bias + c) + get(w + last * n + c) * u;
        for (int64_t j = 0; j < last; ++j) {
            s += get(w + j * n + c) * get(window + j * n + c);
            put(window + j * n + c, j + 1 < last ? get(window + (j + 1) * n + c) : u);
        }
        put(x + c, silu(s));
    }
}

/* Mamba: h = exp(dt A) h + dt B x, y = (C . h + D x) silu(z); dt = softplus of what lies at `to`, where y goes.
 * `other` holds B and C (k each), `jump` says where z stands; log2(e) A is (block, k, LANES). */
static void selective(const instruction *i, const float *x, const float *z, float *h, float *y, const float *projected) {
    const float *A = i->w, *B = projected, *C = projected + i->k;
    EACH(c, i->n) {
        vec slope;
        const vec u = get(x + c), dt = softplus(get(y + c), &slope), driven = dt * u;
        vec sum = u * get(i->bias + c);
        for (int64_t j = 0; j < i->k; ++j, A += LANES, h += LANES) {
            const vec new = exp2_any(dt * get(A)) * get(h) + driven * B[j];
            put(h, new);
            sum += new * C[j];
        }
        put(y + c, sum * silu(get(z + c)));
    }
}
/* The same with k conjugate pairs: Re and Im of A (block, k, 2, LANES), of h, and of B and C (2 k each). */
static void selective_pairs(
    const instruction *i, const float *x, const float *z, float *h, float *y, const float *projected) {
    const float *A = i->w, *B = projected, *C = projected + 2 * i->k;
    EACH(c, i->n) {
        vec slope, sine, cosine;
        const vec u = get(x + c), dt = softplus(get(y + c), &slope), driven = dt * u;
        vec sum = {0};
        for (int64_t j = 0; j < i->k; ++j, A += 2 * LANES, h += 2 * LANES) {
            const vec size = exp2_any(dt * get(A)), re = get(h), im = get(h + LANES);
            sin_cos(dt * get(A + LANES), &sine, &cosine);
            const vec nr = size * (cosine * re - sine * im) + driven * B[j];
            const vec ni = size * (cosine * im + sine * re) + driven * B[i->k + j];
            put(h, nr), put(h + LANES, ni);
            sum += nr * C[j] - ni * C[i->k + j];
        }
        put(y + c, (2 * sum + u * get(i->bias + c)) * silu(get(z + c)));
    }
}

/* ---- the machine ---- */
static void interpret(const problem *p, float *arena, int64_t *registers, float *scratch) {
    for (const instruction *i = p->program;; ++i) {
        float *to = scratch + i->to;
        const float *from = scratch + i->from;
        switch (i->op) {
        case EMBED: memcpy(to, (const float *)i->w + registers[0] * WHOLE(i->n), (size_t)WHOLE(i->n) * 4); break;
        case NORM: layer_norm(i, from, to); break;
        case LINEAR: /* a pool's maps read and write the arena */
            linear(i, i->state < 0 ? from : arena + i->state, i->other < 0 ? to : arena + i->other);
            break;
        case S4D: diagonal(i, from, arena + i->state, to); break;
        case S4: low_rank(i, from, arena + i->state, to); break;
        case CONV: short_conv(i, to, arena + i->state); break;
        case SCAN: selective(i, from, scratch + i->jump, arena + i->state, to, scratch + i->other); break;
        case SCAN_PAIRS: selective_pairs(i, from, scratch + i->jump, arena + i->state, to, scratch + i->other); break;
        case ADD: EACH(c, i->n) put(to + c, get(to + c) + get(from + c)); break;
        case GATE: EACH(c, i->n) put(to + c, get(to + c) * silu(get(from + c))); break;
        case COPY: memcpy(to, from, (size_t)WHOLE(i->n) * 4); break;
        case RECALL: EACH(c, i->n) put(to + c, get(to + c) + get(arena + i->state + c)); break;
        case POOL: { /* this token's share of the last whole group; the token joins the next; a whole group goes on */
            int64_t *phase = registers + i->phase;
            const size_t bytes = (size_t)WHOLE(i->n) * 4;
            memcpy(to, arena + i->other + *phase * WHOLE(i->n), bytes);
            memcpy(arena + i->state + *phase * WHOLE(i->n), from, bytes);
            *phase = (*phase + 1) % i->k;
            if (*phase) i = p->program + i->jump - 1;
            break;
        }
        default: return;
        }
    }
}

/* ---- drawing ---- */
static double uniform(uint64_t seed, uint64_t position) { /* splitmix64 at a counter: any draw from (seed, position) */
    uint64_t v = seed * 0xD1342543DE82EF95u + (position + 1) * 0x9E3779B97F4A7C15u;
    for (int round = 0; round < 2; ++round) {
        v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
        v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
        v ^= v >> 31;
    }
    return (double)(v >> 11) * 0x1p-53;
}

/* The largest threshold such that what is not below it weighs at least `wanted`, or counts so much. Reorders v. */
static float threshold(float *v, int64_t n, double wanted, int by_count) {
    double above = 0;
    float least = 0;
    int64_t low = 0, high = n; /* v[low..high) is undecided, all before is above the threshold */
    while (high > low) {
        const float pivot = v[low + (high - low) / 2];
        int64_t more = low, end = high;
        double weight = 0, equal = 0;
        for (int64_t j = low; j < end;) {
            const float x = v[j];
            if (x > pivot) weight += by_count ? 1 : x, v[j] = v[more], v[more++] = x, ++j;
            else if (x == pivot) equal += by_count ? 1 : x, ++j;
            else v[j] = v[--end], v[end] = x;
        }
        if (above + weight >= wanted) high = more;
        else if (above + weight + equal >= wanted) return pivot;
        else above += weight + equal, low = end, least = pivot;
    }
    return least; /* rounding: everything together weighs less */
}

static int64_t draw(const problem *p, const float *logits, float *chance, float *spare, uint64_t seed, int64_t position) {
    const int64_t n = p->levels;
    int64_t best = 0;
    for (int64_t j = 1; j < n; ++j)
        if (logits[j] > logits[best]) best = j;
    if (p->temperature <= 0) return best;
    const float top = logits[best], rate = (float)(1 / p->temperature);
    EACH(c, n) put(chance + c, exp_any((load(logits + c, (int)(n - c)) - top) * rate));
    float least = 0;
    if (p->top_k > 0 && p->top_k < n) {
        memcpy(spare, chance, (size_t)n * 4);
        least = threshold(spare, n, (double)p->top_k, 1);
    }
    double total = 0;
    for (int64_t j = 0; j < n; ++j) {
        chance[j] = chance[j] >= least ? chance[j] : 0;
        total += chance[j];
    }
    if (p->top_p < 1) {
        memcpy(spare, chance, (size_t)n * 4);
        least = threshold(spare, n, p->top_p * total, 0);
        total = 0;
        for (int64_t j = 0; j < n; ++j) {
            chance[j] = chance[j] >= least ? chance[j] : 0;
            total += chance[j];
        }
    }
    const double target = uniform(seed, (uint64_t)position) * total;
    double sum = 0;
    int64_t last = best;
    for (int64_t j = 0; j < n; ++j) {
        sum += chance[j];
        if (chance[j] > 0) last = j;
        if (sum > target) return j;
    }
    return last;
}

static float log_chance(const float *logits, int64_t n, int64_t level) {
    vec most = splat(logits[0]);
    for (int64_t j = 0; j < n; ++j)
        if (logits[j] > most[0]) most[0] = logits[j];
    const float top = most[0];
    double total = 0;
    EACH(c, n) {
        const vec e = exp_any(load(logits + c, (int)(n - c)) - top);
        for (int l = 0; l < LANES && c + l < n; ++l) total += e[l];
    }
    return logits[level] - top - (float)log(total);
}

static void task(void *argument, int64_t s) {
    const problem *p = argument;
    float *arena = p->arenas + s * p->arena, *scratch = aligned((size_t)(p->scratch + 2 * WHOLE(p->levels)) * 4);
    float *chance = scratch + p->scratch, *spare = chance + WHOLE(p->levels), *logits = scratch + p->logits;
    int64_t *registers = p->registers + s * p->integers;
    memset(scratch, 0, (size_t)p->scratch * 4);
    for (int64_t t = 0; t < p->count; ++t) {
        interpret(p, arena, registers, scratch);
        if (p->logits_out) memcpy(p->logits_out + (s * p->count + t) * p->levels, logits, (size_t)p->levels * 4);
        int64_t next = registers[0];
        if (p->given) next = p->given[s * p->count + t];
        else if (p->sampled) next = draw(p, logits, chance, spare, p->seeds[s], registers[1]);
        if (p->drawn) p->drawn[s * p->count + t] = next;
        if (p->log_likelihood) p->log_likelihood[s * p->count + t] = log_chance(logits, p->levels, next);
        registers[0] = next, ++registers[1];
    }
    free(scratch);
}

EXPORT void step_network_run(problem *p) { run_tasks(task, p, p->streams, (int)p->threads); }
EXPORT int64_t step_network_lanes(void) { return LANES; }

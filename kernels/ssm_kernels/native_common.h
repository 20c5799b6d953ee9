/* Shared by the native files of all operators: one vector type, its elementary functions, and a parallel loop.
 *
 * A native file is compiled once per element type: with -DSSM_DOUBLE for float64, with -DSSM_COMPLEX for complex states.
 * Vectors are GCC/Clang vector extensions of the machine's own width (AVX-512, AVX2, SSE, NEON), lanes are channels.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#ifdef SSM_DOUBLE
typedef double real;
typedef int64_t whole;
#define MANTISSA_BITS 52
#define ROUNDER 6755399441055744.0 /* 1.5 * 2^52: adding it rounds to an integer, which then stands in the low bits */
#define EXP2_LIMIT 1020.0
#else
typedef float real;
typedef int32_t whole;
#define MANTISSA_BITS 23
#define ROUNDER 12582912.0f /* 1.5 * 2^23 */
#define EXP2_LIMIT 125.0f
#endif

#define LANES ((int)(VECTOR_BYTES / sizeof(real)))
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef whole ivec __attribute__((vector_size(VECTOR_BYTES)));

INLINE vec splat(real s) { return s - (vec){0}; }
INLINE vec vabs(vec x) { return (vec)((ivec)x & (ivec)(~(ivec)splat((real)-0.0))); }
#if defined(__AVX512F__) && !defined(SSM_DOUBLE)
/* GCC builds poor code for these three from the generic form: masks live in registers of their own here. */
#include <immintrin.h>
INLINE vec choose(ivec mask, vec yes, vec no) {
    return (vec)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)no, (__m512)yes);
}
INLINE vec at_least(vec x, real low) { return (vec)_mm512_max_ps((__m512)splat(low), (__m512)x); }
INLINE vec at_most(vec x, real high) { return (vec)_mm512_min_ps((__m512)splat(high), (__m512)x); }
/* 1/x for normal x, by one Newton step: a division costs as much as 16 multiplications. */
INLINE vec reciprocal(vec x) {
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r * (2 - x * r);
}
#elif defined(__AVX2__) && !defined(SSM_DOUBLE)
#include <immintrin.h>
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)mask); }
INLINE vec at_least(vec x, real low) { return (vec)_mm256_max_ps((__m256)splat(low), (__m256)x); }
INLINE vec at_most(vec x, real high) { return (vec)_mm256_min_ps((__m256)splat(high), (__m256)x); }
/* 1/x for normal x: 12 bits, then the first three terms of 1/(1 - rest), right to the last digit. */
INLINE vec reciprocal(vec x) {
    vec r = (vec)_mm256_rcp_ps((__m256)x), rest = 1 - x * r;
    return r + r * (rest + rest * rest);
}
#else
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE vec at_least(vec x, real low) { return choose(x < splat(low), splat(low), x); } /* a NaN stays a NaN */
INLINE vec at_most(vec x, real high) { return choose(x > splat(high), splat(high), x); }
INLINE vec reciprocal(vec x) { return 1 / x; }
#endif

/* A product that stays one: AMD's Zen adds on pipes of its own, which a fused multiply-add would leave idle. */
INLINE vec product(vec a, vec b) {
    vec v = a * b;
#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) || defined(__znver5__)
    __asm__("" : "+x"(v));
#endif
    return v;
}

/* Rows of channels: full vectors are read in place, the last ones lane by lane, the missing lanes as zeros. */
INLINE vec load(const real *p, int lanes) {
    vec v = {0};
    if (lanes >= LANES) memcpy(&v, p, sizeof v);
    else if (lanes > 0) memcpy(&v, p, (size_t)lanes * sizeof(real));
    return v;
}
INLINE void store(real *p, vec v, int lanes) {
    if (lanes >= LANES) memcpy(p, &v, sizeof v);
    else if (lanes > 0) memcpy(p, &v, (size_t)lanes * sizeof(real));
}
INLINE real lane_sum(vec v) {
    real s = 0;
    for (int i = 0; i < LANES; ++i) s += v[i];
    return s;
}
INLINE real lane_max(vec v) {
    real m = v[0];
    for (int i = 1; i < LANES; ++i) m = v[i] > m || v[i] != v[i] ? v[i] : m;
    return m;
}

/* Elementary functions work on `side` vectors at once, at most SIDE of them (a constant): each is a long chain of
 * operations that wait for each other, and the chains of several vectors fill each other's gaps. */
#define SIDE 4
#define FOR_SIDE _Pragma("GCC unroll 8") for (int s = 0; s < side; ++s)

/* u becomes 2^u, for |u| <= EXP2_LIMIT. The polynomial's constant is exactly 1: an error of 6e-8 there would compound in
 * slow states. float32: relative error 1.7e-7 at most, mean -2e-8. */
INLINE void exp2_side(vec *u, int side) {
#ifdef SSM_DOUBLE
    static const real c[] = {1.3691488853904128e-12, 2.567843599348820e-11, 4.4455382718708106e-10, 7.054911620801121e-09,
                             1.0178086009239699e-07, 1.3215486790144307e-06, 1.525273380405984e-05, 0.0001540353039338161,
                             0.0013333558146428443, 0.009618129107628477, 0.05550410866482158, 0.24022650695910072,
                             0.6931471805599453, 1};
#else
    static const real c[] = {0.001326472731307149f, 0.009671512991189957f, 0.05550733581185341f, 0.24022242426872253f,
                             0.6931470036506653f, 1};
#endif
    vec whole[SIDE], rest[SIDE], p[SIDE];
    FOR_SIDE whole[s] = u[s] + ROUNDER;
    FOR_SIDE rest[s] = u[s] - (whole[s] - ROUNDER), p[s] = splat(c[0]);
#pragma GCC unroll 16
    for (int k = 1; k < (int)(sizeof c / sizeof *c); ++k) FOR_SIDE p[s] = p[s] * rest[s] + c[k];
    FOR_SIDE u[s] = (vec)((ivec)p[s] + ((ivec)whole[s] << MANTISSA_BITS));
}
INLINE vec exp2_small(vec u) { return exp2_side(&u, 1), u; }
INLINE vec exp2_any(vec u) { return exp2_small(at_most(at_least(u, -EXP2_LIMIT), EXP2_LIMIT)); }
INLINE vec exp_any(vec u) { return exp2_any(u * (real)1.4426950408889634); }

/* e becomes log(1 + e), for e in [0, 1], relative error 1e-7 in float32. */
INLINE void log1p_side(vec *e, int side) {
#ifdef SSM_DOUBLE
    FOR_SIDE for (int i = 0; i < LANES; ++i) e[s][i] = log1p(e[s][i]);
#else
    static const real c[] = {-0.0032454601023346186f, 0.019858703017234802f, -0.05697495862841606f, 0.10605457425117493f,
                             -0.15306851267814636f, 0.19676473736763f, -0.24954268336296082f, 0.33329981565475464f,
                             -0.4999990463256836f, 1.0f};
    vec p[SIDE];
    FOR_SIDE p[s] = splat(c[0]);
#pragma GCC unroll 16
    for (int k = 1; k < (int)(sizeof c / sizeof *c); ++k) FOR_SIDE p[s] = p[s] * e[s] + c[k];
    FOR_SIDE e[s] *= p[s];
#endif
}
/* e gets exp(-|v|) */
INLINE void exp_minus_abs_side(const vec *v, vec *e, int side) {
    FOR_SIDE e[s] = at_least(product(vabs(v[s]), splat((real)-1.4426950408889634)), -EXP2_LIMIT);
    exp2_side(e, side);
}
/* exp(v)/(1 + exp(v)) from e = exp(-|v|) */
INLINE vec sigmoid_from(vec v, vec e) { return choose(v < (vec){0}, e, splat(1)) * reciprocal(1 + e); }
/* v becomes exp(v)/(1 + exp(v)) */
INLINE void sigmoid_side(vec *v, int side) {
    vec e[SIDE];
    exp_minus_abs_side(v, e, side);
    FOR_SIDE v[s] = sigmoid_from(v[s], e[s]);
}
INLINE vec sigmoid(vec v) { return sigmoid_side(&v, 1), v; }
/* v becomes log(1 + exp(v)); slope, if any, gets its derivative, the sigmoid of v. */
INLINE void softplus_side(vec *v, vec *slope, int side) {
    vec e[SIDE];
    exp_minus_abs_side(v, e, side);
    if (slope) FOR_SIDE slope[s] = sigmoid_from(v[s], e[s]);
    log1p_side(e, side);
    FOR_SIDE v[s] = at_least(v[s], 0) + e[s];
}
INLINE vec softplus(vec v, vec *slope) { return softplus_side(&v, slope, 1), v; }
/* The same over an array of `count` vectors. */
#define ALONG(count, call) \
    { \
        int64_t k = 0; \
        for (const int side = SIDE; k + side <= (count); k += side) call; \
        for (const int side = 1; k < (count); k += side) call; \
    }

/* sin and cos of any angle that keeps its fraction in `real` (|x| up to about 1e4 in float32). */
INLINE void sin_cos(vec x, vec *sine, vec *cosine) {
    vec quarter = x * (real)0.6366197723675814 + ROUNDER; /* nearest multiple of pi/2 */
    vec k = quarter - ROUNDER;
#ifdef SSM_DOUBLE
    vec r = x - k * 1.5707963267341256;
    r = r - k * 6.077100506303966e-11;
    r = r - k * 2.0222662487959506e-21;
    vec y = r * r;
    vec s = splat(2.8114572543455206e-15), c = splat(4.779477332387385e-14);
    static const real sines[] = {1, -0.16666666666666666, 0.008333333333333333, -0.0001984126984126984,
                                 2.7557319223985893e-06, -2.505210838544172e-08, 1.6059043836821613e-10, -7.647163731819816e-13};
    static const real cosines[] = {1, -0.5, 0.041666666666666664, -0.001388888888888889,
                                   2.48015873015873e-05, -2.755731922398589e-07, 2.08767569878681e-09, -1.1470745597729725e-11};
    for (int i = 7; i >= 0; --i) s = s * y + sines[i], c = c * y + cosines[i];
#else
    vec r = x - k * 1.5703125f;
    r = r - k * 4.837512969970703e-4f;
    r = r - k * 7.549789954891882e-8f;
    vec y = r * r;
    vec s = splat(-0.0001950402225840927f), c = splat(2.4387121225496098e-05f);
    s = s * y + 0.008332037221628494f;
    s = s * y - 0.16666650720516987f;
    s = s * y + 1;
    c = c * y - 0.0013886747878601514f;
    c = c * y + 0.04166662371269348f;
    c = c * y - 0.5f;
    c = c * y + 1;
#endif
    s = s * r;
    ivec q = (ivec)quarter;
    ivec odd = -(q & 1), sine_sign = (q & 2) << (sizeof(real) * 8 - 2), cosine_sign = ((q + 1) & 2) << (sizeof(real) * 8 - 2);
    *sine = (vec)((ivec)choose(odd, c, s) ^ sine_sign);
    *cosine = (vec)((ivec)choose(odd, s, c) ^ cosine_sign);
}

/* Parallel loop over tasks, handed out one by one so that a slow core takes fewer. */
typedef void (*region)(void (*)(void *), void *, unsigned, unsigned);
static region parallel_region;

EXPORT void ssm_set_parallel(region r) { parallel_region = r; }

typedef struct {
    void (*task)(void *problem, int64_t index);
    void *problem;
    int64_t count;
    atomic_llong next;
} task_queue;

static void take_tasks(void *argument) {
    task_queue *q = argument;
    for (int64_t i; (i = atomic_fetch_add(&q->next, 1)) < q->count;) q->task(q->problem, i);
}
static void run_tasks(void (*task)(void *, int64_t), void *problem, int64_t count, int threads) {
    task_queue q = {task, problem, count, 0};
    if (threads > count) threads = (int)count;
    if (threads > 1 && parallel_region) parallel_region(take_tasks, &q, (unsigned)threads, 0);
    else take_tasks(&q);
}
INLINE void *aligned(size_t bytes) { return aligned_alloc(64, (bytes + 63) & ~(size_t)63); }

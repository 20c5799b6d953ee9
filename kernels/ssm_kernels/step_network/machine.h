/* What a program is made of, and the functions that all instructions share. */
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
    int64_t streams, count, threads, levels, arena, scratch, integers, logits; /* sizes in floats and integers */
    int64_t together; /* most streams that step side by side on a thread; 0 is 1 */
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

/* Streams that step side by side: a block of weights is read once from afar and for the others from the nearest cache.
 * Each stream's numbers are made in the same order as if it were alone, so they do not depend on the others. */
enum { MOST_TOGETHER = 8 };
typedef struct {
    int64_t size, arena_stride, scratch_stride, integers;
    float *arena, *scratch; /* of the first */
    int64_t *registers;
    int16_t *whole; /* room for the inputs of an int8 map */
} group;
#define STREAMS(b, g) for (int64_t b = 0; b < (g)->size; ++b)
INLINE float *arena_of(const group *g, int64_t b) { return g->arena + b * g->arena_stride; }
INLINE float *scratch_of(const group *g, int64_t b) { return g->scratch + b * g->scratch_stride; }

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

/* What this machine can do at most: vector exp, multiply-add and copy rates, on as many threads as are asked for.
 * The exp is the kernels' own (degree 5, relative error 1.7e-7), on numbers that stay in the first-level cache. */
#include "native_common.h"

#define BLOCK 4096 /* floats: 16 KiB in, 16 KiB out */
#define CHAINS 16  /* independent multiply-adds in flight: more than latency times pipes of any CPU */

typedef struct {
    int64_t repeats, bytes;
    char *from, *to;
    _Atomic float sink; /* keeps results alive */
} work;

static void exp_task(void *argument, int64_t index) {
    work *w = argument;
    real *u = aligned(BLOCK * sizeof(real)), *e = aligned(BLOCK * sizeof(real));
    for (int i = 0; i < BLOCK; ++i) u[i] = (real)(-8.0 * i / BLOCK), e[i] = 0;
    for (int64_t r = 0; r < w->repeats; ++r) {
        for (int i = 0; i < BLOCK; i += LANES) {
            vec v;
            memcpy(&v, u + i, sizeof v);
            v = exp2_small(v);
            memcpy(e + i, &v, sizeof v);
        }
        __asm__ volatile("" ::"r"(u), "r"(e) : "memory"); /* every pass is done, none is merged with the next */
    }
    w->sink = e[index % BLOCK];
    free(u), free(e);
}

static void multiply_add_task(void *argument, int64_t index) {
    work *w = argument;
    volatile float near_one = 0.9999999f, small = 1e-7f;
    const vec a = splat(near_one), b = splat(small);
    vec v[CHAINS];
    for (int c = 0; c < CHAINS; ++c) v[c] = splat((real)(c + index));
    for (int64_t r = 0; r < w->repeats; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < CHAINS; ++c) v[c] = v[c] * a + b;
    }
    vec s = v[0];
    for (int c = 1; c < CHAINS; ++c) s += v[c];
    w->sink = lane_sum(s);
}

static void copy_task(void *argument, int64_t index) {
    work *w = argument;
    for (int64_t r = 0; r < w->repeats; ++r) memcpy(w->to + index * w->bytes, w->from + index * w->bytes, (size_t)w->bytes);
}

/* Each of `threads` tasks does `repeats` passes over a block: BLOCK exps, CHAINS * LANES multiply-adds, or bytes copied. */
EXPORT void floor_exp(int64_t repeats, int64_t threads) {
    work w = {.repeats = repeats};
    run_tasks(exp_task, &w, threads, (int)threads);
}
EXPORT void floor_multiply_add(int64_t repeats, int64_t threads) {
    work w = {.repeats = repeats};
    run_tasks(multiply_add_task, &w, threads, (int)threads);
}
EXPORT void floor_copy(int64_t repeats, int64_t threads, char *from, char *to, int64_t bytes) {
    work w = {.repeats = repeats, .bytes = bytes, .from = from, .to = to};
    run_tasks(copy_task, &w, threads, (int)threads);
}
EXPORT int64_t floor_block(void) { return BLOCK; }
EXPORT int64_t floor_chain_lanes(void) { return CHAINS * LANES; }
EXPORT int64_t floor_lanes(void) { return LANES; }

/* What this machine can do at most: vector exp, multiply-add and copy rates, on as many threads as are asked for.
 * The exp is the kernels' own (degree 5, relative error 1.7e-7), on numbers that stay in the first-level cache.
 * Time is the CPU time of the slowest thread: what the wall clock shows where no other process takes the cores. */
#include <time.h>

#include "native_common.h"

#define BLOCK 4096 /* floats: 16 KiB in, 16 KiB out */
#define CHAINS 12  /* independent multiply-adds in flight: more than latency times pipes, and they fit 16 registers with a and b */

typedef struct {
    int64_t repeats, bytes;
    char *from, *to;
    double *seconds;    /* of each task */
    _Atomic float sink; /* keeps results alive */
} work;

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void exp_task(void *argument, int64_t index) {
    work *w = argument;
    real *u = aligned(BLOCK * sizeof(real)), *e = aligned(BLOCK * sizeof(real));
    for (int i = 0; i < BLOCK; ++i) u[i] = (real)(-8.0 * i / BLOCK), e[i] = 0;
    const double start = thread_seconds();
    for (int64_t r = 0; r < w->repeats; ++r) {
        for (int i = 0; i < BLOCK; i += LANES) {
            vec v;
            memcpy(&v, u + i, sizeof v);
            v = exp2_small(v);
            memcpy(e + i, &v, sizeof v);
        }
        __asm__ volatile("" ::"r"(u), "r"(e) : "memory"); /* every pass is done, none is merged with the next */
    }
    w->seconds[index] = thread_seconds() - start;
    w->sink = e[index % BLOCK];
    free(u), free(e);
}

static void multiply_add_task(void *argument, int64_t index) {
    work *w = argument;
    volatile float near_one = 0.9999999f, small = 1e-7f;
    const vec a = splat(near_one), b = splat(small);
    vec v[CHAINS];
    for (int c = 0; c < CHAINS; ++c) v[c] = splat((real)(c + index));
    const double start = thread_seconds();
    for (int64_t r = 0; r < w->repeats; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < CHAINS; ++c) v[c] = v[c] * a + b;
    }
    for (int c = 0; c < CHAINS; ++c) __asm__ volatile("" : : "m"(v[c])); /* finished before the clock is read */
    w->seconds[index] = thread_seconds() - start;
    vec s = v[0];
    for (int c = 1; c < CHAINS; ++c) s += v[c];
    w->sink = lane_sum(s);
}

static void copy_task(void *argument, int64_t index) {
    work *w = argument;
    const double start = thread_seconds();
    for (int64_t r = 0; r < w->repeats; ++r) memcpy(w->to + index * w->bytes, w->from + index * w->bytes, (size_t)w->bytes);
    w->seconds[index] = thread_seconds() - start;
}

static double slowest(void (*task)(void *, int64_t), work *w, int64_t threads) {
    double most = 0;
    w->seconds = calloc((size_t)threads, sizeof(double));
    run_tasks(task, w, threads, (int)threads);
    for (int64_t i = 0; i < threads; ++i) most = w->seconds[i] > most ? w->seconds[i] : most;
    free(w->seconds);
    return most;
}

/* Each of `threads` tasks does `repeats` passes over a block: BLOCK exps, CHAINS * LANES multiply-adds, or bytes copied. */
EXPORT double floor_exp(int64_t repeats, int64_t threads) {
    work w = {.repeats = repeats};
    return slowest(exp_task, &w, threads);
}
EXPORT double floor_multiply_add(int64_t repeats, int64_t threads) {
    work w = {.repeats = repeats};
    return slowest(multiply_add_task, &w, threads);
}
EXPORT double floor_copy(int64_t repeats, int64_t threads, char *from, char *to, int64_t bytes) {
    work w = {.repeats = repeats, .bytes = bytes, .from = from, .to = to};
    return slowest(copy_task, &w, threads);
}
EXPORT int64_t floor_block(void) { return BLOCK; }
EXPORT int64_t floor_chain_lanes(void) { return CHAINS * LANES; }
EXPORT int64_t floor_lanes(void) { return LANES; }

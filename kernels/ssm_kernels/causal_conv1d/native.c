/* Causal depthwise convolution on a CPU, forward and backward:  y[t] = act(bias + sum over j < w of weight[j] seen[t + j]),
 * where seen is the state (w-1 inputs) followed by x.
 *
 * Work is cut into blocks of channels (vector lanes) by CHUNK steps. A chunk of `seen` and the w-1 steps before it lie in
 * the first-level cache, so any stride, direction or state is a matter of how the chunk is filled. Backward walks forward in
 * time too: with dp the gradient before the activation,
 *   dseen[s] = sum over j of weight[j] dp[s - j],   dweight[j] = sum over t of dp[t] seen[t + j],
 * and the w-1 steps past the end carry the gradient of the last state. Every sum has a fixed order.
 */
#include "../native_common.h"

#define CHUNK 32
#define STEPS 8 /* outputs in registers at a time */

typedef struct {
    int64_t rows, d, width, block, blocks, row_groups, silu, reverse, threads;
    int64_t x_batch, x_step, y_batch, y_step, dy_batch, dy_step, dx_batch, dx_step; /* strides; channels are contiguous */
    const int64_t *row;                          /* (batch, start, length) of each row */
    const real *x, *weight, *bias, *h0;          /* weight (w, d); bias, h0 (rows, w-1, d) may be NULL */
    real *y, *last;
    const real *dy, *dlast;                      /* may be NULL */
    real *dx, *dweight, *dbias, *dh0;            /* dweight (row groups, w, d), dbias (row groups, d); dh0 may be NULL */
} problem;

/* One block of channels of one row. */
typedef struct {
    int64_t row, batch, first, sign, steps; /* first: time of the first step in scan order */
    int64_t channel, width, wide;           /* channels here, and vectors */
} strip;

INLINE int64_t at(int64_t batch, int64_t step, const strip *q, int64_t i) {
    return q->batch * batch + (q->first + q->sign * i) * step + q->channel;
}
INLINE int lanes_of(const strip *q, int64_t v) {
    return q->width - v * LANES < LANES ? (int)(q->width - v * LANES) : LANES;
}
static void get(const strip *q, vec *to, const real *from) {
    for (int64_t v = 0; v < q->wide; ++v) to[v] = from ? load(from + v * LANES, lanes_of(q, v)) : (vec){0};
}
static void put(const strip *q, const vec *from, real *to) {
    for (int64_t v = 0; v < q->wide; ++v) store(to + v * LANES, from[v], lanes_of(q, v));
}

/* out[i] = start + sum over j of taps[j] in[i + j], all in rows of `wide` vectors. */
INLINE void filter_width(vec *out, const vec *in, const vec *taps, const vec *start, int64_t wide, int64_t steps, int64_t w) {
    for (int64_t v = 0; v < wide; ++v) {
        const vec s = start ? start[v] : (vec){0};
        int64_t i = 0;
        for (; i + STEPS <= steps; i += STEPS) {
            vec sum[STEPS];
#pragma GCC unroll 8
            for (int k = 0; k < STEPS; ++k) sum[k] = s;
            for (int64_t j = 0; j < w; ++j) {
                const vec tap = taps[j * wide + v];
#pragma GCC unroll 8
                for (int k = 0; k < STEPS; ++k) sum[k] += tap * in[(i + j + k) * wide + v];
            }
#pragma GCC unroll 8
            for (int k = 0; k < STEPS; ++k) out[(i + k) * wide + v] = sum[k];
        }
        for (; i < steps; ++i) {
            vec sum = s;
            for (int64_t j = 0; j < w; ++j) sum += taps[j * wide + v] * in[(i + j) * wide + v];
            out[i * wide + v] = sum;
        }
    }
}
static void filter(vec *out, const vec *in, const vec *taps, const vec *start, int64_t wide, int64_t steps, int64_t w) {
    if (w == 4) filter_width(out, in, taps, start, wide, steps, 4);
    else filter_width(out, in, taps, start, wide, steps, w);
}

/* dtaps[j] += sum over i of dp[i] in[i + j] */
static void filter_weight(vec *dtaps, const vec *dp, const vec *in, int64_t wide, int64_t steps, int64_t w) {
    for (int64_t v = 0; v < wide; ++v) {
        int64_t j = 0;
        for (; j + 4 <= w; j += 4) {
            vec sum[4] = {0};
            for (int64_t i = 0; i < steps; ++i) {
                const vec g = dp[i * wide + v];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) sum[k] += g * in[(i + j + k) * wide + v];
            }
            for (int k = 0; k < 4; ++k) dtaps[(j + k) * wide + v] += sum[k];
        }
        for (; j < w; ++j) {
            vec sum = {0};
            for (int64_t i = 0; i < steps; ++i) sum += dp[i * wide + v] * in[(i + j) * wide + v];
            dtaps[j * wide + v] += sum;
        }
    }
}

/* ---- scratch of one task ---- */
typedef struct {
    vec *taps, *flipped, *bias, *dtaps, *dbias; /* (w, wide) and (wide) */
    vec *seen, *dp;                             /* (w - 1 + CHUNK, wide): the w-1 steps before a chunk, and the chunk */
    vec *out;                                   /* (CHUNK, wide) */
} scratch;

static scratch *scratch_of(int64_t w, int64_t wide) {
    const int64_t taps = w * wide, line = (w - 1 + CHUNK) * wide, chunk = CHUNK * wide;
    vec *base = aligned((size_t)(3 * taps + 2 * wide + 2 * line + chunk) * sizeof(vec) + 64);
    scratch *s = malloc(sizeof *s);
    s->taps = base, s->flipped = base + taps, s->dtaps = base + 2 * taps, s->bias = base + 3 * taps;
    s->dbias = s->bias + wide, s->seen = s->dbias + wide, s->dp = s->seen + line, s->out = s->dp + line;
    return s;
}
static void drop(scratch *s) { free(s->taps), free(s); }

static void read_taps(const problem *p, const strip *q, scratch *s) {
    for (int64_t j = 0; j < p->width; ++j) {
        get(q, s->taps + j * q->wide, p->weight + j * p->d + q->channel);
        memcpy(s->flipped + (p->width - 1 - j) * q->wide, s->taps + j * q->wide, (size_t)q->wide * sizeof(vec));
    }
    get(q, s->bias, p->bias ? p->bias + q->channel : NULL);
}
static strip strip_of(const problem *p, int64_t r, int64_t block) {
    strip q = {.row = r, .channel = block * p->block, .sign = p->reverse ? -1 : 1};
    q.width = p->d - q.channel < p->block ? p->d - q.channel : p->block;
    q.wide = (q.width + LANES - 1) / LANES;
    if (r < 0) return q;
    const int64_t *row = p->row + 3 * r;
    q.batch = row[0], q.steps = row[2], q.first = p->reverse ? row[1] + row[2] - 1 : row[1];
    return q;
}
INLINE const real *state_row(const problem *p, const strip *q, const real *states, int64_t i) {
    return states + (q->row * (p->width - 1) + i) * p->d + q->channel;
}
static void read_state(const problem *p, const strip *q, scratch *s) {
    for (int64_t i = 0; i < p->width - 1; ++i) get(q, s->seen + i * q->wide, p->h0 ? state_row(p, q, p->h0, i) : NULL);
}
static void read_chunk(const problem *p, const strip *q, scratch *s, int64_t done, int64_t steps) {
    vec *to = s->seen + (p->width - 1) * q->wide;
    for (int64_t i = 0; i < steps; ++i) get(q, to + i * q->wide, p->x + at(p->x_batch, p->x_step, q, done + i));
}
/* Keep the last w-1 steps. */
static void slide(const problem *p, const strip *q, vec *line, int64_t steps) {
    memmove(line, line + steps * q->wide, (size_t)((p->width - 1) * q->wide) * sizeof(vec));
}

/* ---- tasks: row group by block ---- */
static void forward_task(void *argument, int64_t index) {
    const problem *p = argument;
    const int64_t block = index % p->blocks, group = index / p->blocks;
    strip q = strip_of(p, -1, block);
    scratch *s = scratch_of(p->width, q.wide);
    read_taps(p, &q, s);
    for (int64_t r = p->rows * group / p->row_groups; r < p->rows * (group + 1) / p->row_groups; ++r) {
        q = strip_of(p, r, block);
        read_state(p, &q, s);
        for (int64_t done = 0; done < q.steps; done += CHUNK) {
            const int64_t steps = q.steps - done < CHUNK ? q.steps - done : CHUNK;
            read_chunk(p, &q, s, done, steps);
            filter(s->out, s->seen, s->taps, s->bias, q.wide, steps, p->width);
            if (p->silu)
                for (int64_t k = 0; k < steps * q.wide; ++k) s->out[k] *= sigmoid(s->out[k]);
            for (int64_t i = 0; i < steps; ++i) put(&q, s->out + i * q.wide, p->y + at(p->y_batch, p->y_step, &q, done + i));
            slide(p, &q, s->seen, steps);
        }
        for (int64_t i = 0; i < p->width - 1; ++i) put(&q, s->seen + i * q.wide, (real *)state_row(p, &q, p->last, i));
    }
    drop(s);
}

/* dp of a chunk: dy, times the slope of the activation. */
static void read_gradient(const problem *p, const strip *q, scratch *s, int64_t done, int64_t steps) {
    vec *dp = s->dp + (p->width - 1) * q->wide;
    for (int64_t i = 0; i < steps; ++i) get(q, dp + i * q->wide, p->dy ? p->dy + at(p->dy_batch, p->dy_step, q, done + i) : NULL);
    if (p->silu) {
        filter(s->out, s->seen, s->taps, s->bias, q->wide, steps, p->width);
        for (int64_t k = 0; k < steps * q->wide; ++k) {
            const vec v = s->out[k], g = sigmoid(v);
            dp[k] *= g * (1 + v * (1 - g));
        }
    }
    for (int64_t i = 0; i < steps; ++i)
        for (int64_t v = 0; v < q->wide; ++v) s->dbias[v] += dp[i * q->wide + v];
}

/* dseen of `steps` steps from s->dp, to dh0 (the first w-1) or dx. */
static void write_gradient(const problem *p, const strip *q, scratch *s, int64_t done, int64_t steps) {
    filter(s->out, s->dp, s->flipped, NULL, q->wide, steps, p->width);
    for (int64_t i = 0; i < steps; ++i) {
        const int64_t at_seen = done + i, t = at_seen - (p->width - 1);
        vec *out = s->out + i * q->wide;
        if (p->dlast && at_seen >= q->steps) {
            const real *more = state_row(p, q, p->dlast, at_seen - q->steps);
            for (int64_t v = 0; v < q->wide; ++v) out[v] += load(more + v * LANES, lanes_of(q, v));
        }
        if (t >= 0) put(q, out, p->dx + at(p->dx_batch, p->dx_step, q, t));
        else if (p->dh0) put(q, out, (real *)state_row(p, q, p->dh0, at_seen));
    }
}

static void backward_task(void *argument, int64_t index) {
    const problem *p = argument;
    const int64_t block = index % p->blocks, group = index / p->blocks, w = p->width;
    strip q = strip_of(p, -1, block);
    scratch *s = scratch_of(w, q.wide);
    read_taps(p, &q, s);
    memset(s->dtaps, 0, (size_t)(w * q.wide) * sizeof(vec)), memset(s->dbias, 0, (size_t)q.wide * sizeof(vec));
    for (int64_t r = p->rows * group / p->row_groups; r < p->rows * (group + 1) / p->row_groups; ++r) {
        q = strip_of(p, r, block);
        read_state(p, &q, s);
        memset(s->dp, 0, (size_t)((w - 1) * q.wide) * sizeof(vec));
        for (int64_t done = 0; done < q.steps; done += CHUNK) {
            const int64_t steps = q.steps - done < CHUNK ? q.steps - done : CHUNK;
            read_chunk(p, &q, s, done, steps);
            read_gradient(p, &q, s, done, steps);
            filter_weight(s->dtaps, s->dp + (w - 1) * q.wide, s->seen, q.wide, steps, w);
            write_gradient(p, &q, s, done, steps);
            slide(p, &q, s->seen, steps), slide(p, &q, s->dp, steps);
        }
        for (int64_t done = 0; done < w - 1; done += CHUNK) {
            const int64_t steps = w - 1 - done < CHUNK ? w - 1 - done : CHUNK;
            memset(s->dp + (w - 1) * q.wide, 0, (size_t)(steps * q.wide) * sizeof(vec));
            write_gradient(p, &q, s, q.steps + done, steps);
            slide(p, &q, s->dp, steps);
        }
    }
    for (int64_t j = 0; j < w; ++j) put(&q, s->dtaps + j * q.wide, p->dweight + (group * w + j) * p->d + q.channel);
    put(&q, s->dbias, p->dbias + group * p->d + q.channel);
    drop(s);
}

EXPORT void conv_forward(problem *p) { run_tasks(forward_task, p, p->row_groups * p->blocks, (int)p->threads); }
EXPORT void conv_backward(problem *p) { run_tasks(backward_task, p, p->row_groups * p->blocks, (int)p->threads); }

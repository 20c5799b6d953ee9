/* Linear recurrence on a CPU, forward and backward:  h[t] = a[t] h[t-1] + b[t].
 *
 * A task walks one row of one block of channels, step by step: channels are vector lanes, the state stays in the first-level
 * cache, and a, b and h stream through once. The backward recurrence is the same one, in the other direction:
 *   g[t] = dh[t] + conj(a[t+1]) g[t+1],   db = g,   da[t] = g[t] conj(h[t-1]).
 *
 * Where rows and blocks are fewer than the threads, rows are cut into pieces. While the first piece is computed, the others
 * are summarised as affine maps h -> A h + B; a short sequential pass gives each its start, and all but the first are then
 * computed. The last one needs no summary, so k threads take k + 1 pieces, in the time of 2 of them.
 *
 * Complex numbers are pairs of neighbouring reals, and all sizes count reals.
 */
#include "../native_common.h"

typedef struct {
    int64_t rows, d, block, blocks, pieces, reverse, constant_a, threads;
    int64_t a_batch, a_step, b_batch, b_step, h_batch, h_step, dh_batch, dh_step; /* strides; channels are contiguous */
    const int64_t *row;                                                        /* (batch, start, length) of each row */
    const real *a, *b, *h0;                                                    /* h0 may be NULL */
    real *h, *last, *map_a, *map_b;       /* last (rows, d); maps (rows, pieces, d), unused where pieces is 1 */
    const real *dh, *dlast;               /* may be NULL */
    real *da, *db, *dh0;                  /* dh0 may be NULL; da of a constant a is (rows, pieces, d), da and db are like h */
} problem;

/* ---- products, of lanes or of pairs of lanes ---- */
#ifdef SSM_COMPLEX
#ifdef __clang__
#define LANE_ORDER(v, expression) ({ vec o_; for (int i = 0; i < LANES; ++i) o_[i] = (v)[expression]; o_; })
#else
#define LANE_ORDER(v, expression) ({ ivec o_; for (int i = 0; i < LANES; ++i) o_[i] = expression; __builtin_shuffle(v, o_); })
#endif
INLINE vec signs(void) {
    vec s;
    for (int i = 0; i < LANES; ++i) s[i] = i & 1 ? 1 : -1;
    return s;
}
INLINE vec times(vec a, vec h) { return LANE_ORDER(a, i & ~1) * h + LANE_ORDER(a, i | 1) * signs() * LANE_ORDER(h, i ^ 1); }
INLINE vec conj_times(vec a, vec g) { return LANE_ORDER(a, i & ~1) * g - LANE_ORDER(a, i | 1) * signs() * LANE_ORDER(g, i ^ 1); }
INLINE vec one(void) { return (signs() - 1) / -2; }
#else
INLINE vec times(vec a, vec h) { return a * h; }
INLINE vec conj_times(vec a, vec g) { return a * g; }
INLINE vec one(void) { return splat(1); }
#endif

/* ---- one row, one piece of it, one block of channels ---- */
typedef struct {
    int64_t row, batch, first, sign, steps; /* first: time of the piece's first step in scan order */
    int64_t piece, channel, width;
    int is_first;
} part;

static part part_of(const problem *p, int64_t r, int64_t piece, int64_t block) {
    const int64_t *row = p->row + 3 * r;
    const int64_t start = row[2] * piece / p->pieces, end = row[2] * (piece + 1) / p->pieces;
    part q = {.row = r, .batch = row[0], .piece = piece, .sign = p->reverse ? -1 : 1, .steps = end - start};
    q.first = p->reverse ? row[1] + row[2] - 1 - start : row[1] + start;
    q.is_first = start == 0;
    q.channel = block * p->block;
    q.width = p->d - q.channel < p->block ? p->d - q.channel : p->block;
    return q;
}
INLINE int64_t at(int64_t batch, int64_t step, const part *q, int64_t i) {
    return q->batch * batch + (q->first + q->sign * i) * step + q->channel;
}
INLINE const real *a_row(const problem *p, const part *q, int64_t i) {
    return p->a + (p->constant_a ? q->channel : at(p->a_batch, p->a_step, q, i));
}
INLINE int64_t slot(const problem *p, const part *q) { return (q->row * p->pieces + q->piece) * p->d + q->channel; }
#define EACH_VECTOR(c, lanes) \
    for (int64_t c = 0, lanes = q->width < LANES ? q->width : LANES; c < q->width; \
         c += LANES, lanes = q->width - c < LANES ? q->width - c : LANES)

static void fill(const part *q, vec *state, const real *from) {
    EACH_VECTOR(c, lanes) state[c / LANES] = from ? load(from + c, (int)lanes) : (vec){0};
}
static void pour(const part *q, const vec *state, real *to) {
    if (to) EACH_VECTOR(c, lanes) store(to + c, state[c / LANES], (int)lanes);
}

static void forward_part(const problem *p, const part *q, vec *state) {
    for (int64_t i = 0; i < q->steps; ++i) {
        const real *a = a_row(p, q, i), *b = p->b + at(p->b_batch, p->b_step, q, i);
        real *h = p->h + at(p->h_batch, p->h_step, q, i);
        EACH_VECTOR(c, lanes) {
            vec s = times(load(a + c, (int)lanes), state[c / LANES]) + load(b + c, (int)lanes);
            state[c / LANES] = s;
            store(h + c, s, (int)lanes);
        }
    }
}

/* The piece as the map h -> A h + B. */
static void summarise(const problem *p, const part *q, vec *map_a, vec *map_b, int backward) {
    EACH_VECTOR(c, lanes) map_a[c / LANES] = one(), map_b[c / LANES] = (vec){0};
    for (int64_t k = 0; k < q->steps; ++k) {
        const int64_t i = backward ? q->steps - 1 - k : k;
        const real *a = a_row(p, q, i), *b = p->b + at(p->b_batch, p->b_step, q, i);
        const real *dh = p->dh ? p->dh + at(p->dh_batch, p->dh_step, q, i) : NULL;
        EACH_VECTOR(c, lanes) {
            vec a_now = load(a + c, (int)lanes), *A = map_a + c / LANES, *B = map_b + c / LANES;
            if (backward) {
                *A = conj_times(a_now, *A);
                *B = conj_times(a_now, dh ? *B + load(dh + c, (int)lanes) : *B);
            } else {
                *A = times(a_now, *A), *B = times(a_now, *B) + load(b + c, (int)lanes);
            }
        }
    }
    pour(q, map_a, p->map_a + slot(p, q)), pour(q, map_b, p->map_b + slot(p, q));
}

static void backward_part(const problem *p, const part *q, vec *carry, vec *sum) {
    static const real none[1];
    for (int64_t i = q->steps - 1; i >= 0; --i) {
        const real *a = a_row(p, q, i), *dh = p->dh ? p->dh + at(p->dh_batch, p->dh_step, q, i) : NULL, *before = none;
        const int64_t offset = at(p->h_batch, p->h_step, q, i);
        if (i > 0 || !q->is_first) before = p->h + offset - q->sign * p->h_step;
        else if (p->h0) before = p->h0 + q->row * p->d + q->channel;
        EACH_VECTOR(c, lanes) {
            vec g = carry[c / LANES];
            if (dh) g += load(dh + c, (int)lanes);
            vec da = before == none ? (vec){0} : conj_times(load(before + c, (int)lanes), g);
            if (p->constant_a) sum[c / LANES] += da;
            else store(p->da + offset + c, da, (int)lanes);
            store(p->db + offset + c, g, (int)lanes);
            carry[c / LANES] = conj_times(load(a + c, (int)lanes), g);
        }
    }
    if (p->constant_a) pour(q, sum, p->da + slot(p, q));
}

/* ---- tasks: row, piece (in the order of the recurrence), block ---- */
typedef struct {
    problem *p;
    int backward, phase; /* phase 0: the first piece, and the others' maps; phase 1: the others */
} job;

static void task(void *argument, int64_t index) {
    const job *j = argument;
    problem *p = j->p;
    const int64_t count = p->pieces > 1 ? p->pieces - 1 : 1, block = index % p->blocks, k = index / p->blocks % count + j->phase;
    const int64_t r = index / p->blocks / count;
    const part part_here = part_of(p, r, j->backward ? p->pieces - 1 - k : k, block), *q = &part_here;
    const size_t bytes = (size_t)(p->block + LANES) * sizeof(real);
    vec *state = aligned(bytes), *other = aligned(bytes);
    const int64_t here = r * p->d + q->channel;
    if (j->phase == 0 && k > 0) {
        summarise(p, q, state, other, j->backward);
    } else {
        const real *start = j->backward ? p->dlast : p->h0;
        fill(q, state, k > 0 ? p->map_b + slot(p, q) : start ? start + here : NULL);
        if (j->backward) fill(q, other, NULL), backward_part(p, q, state, other);
        else forward_part(p, q, state);
        if (p->pieces > 1 && k == 0) pour(q, state, p->map_b + slot(p, q));
        real *end = j->backward ? p->dh0 : p->last;
        if (k == p->pieces - 1) pour(q, state, end ? end + here : NULL);
    }
    free(state), free(other);
}

/* From each piece's map, and the first one's end, to the start of each: in map_b. */
static void chain(const problem *p, int64_t block, int backward) {
    vec *state = aligned((size_t)(p->block + LANES) * sizeof(real));
    for (int64_t r = 0; r < p->rows; ++r)
        for (int64_t k = 0; k < p->pieces; ++k) {
            const part here = part_of(p, r, backward ? p->pieces - 1 - k : k, block), *q = &here;
            real *B = p->map_b + slot(p, q);
            const real *A = p->map_a + slot(p, q);
            EACH_VECTOR(c, lanes) {
                vec s = state[c / LANES], end = load(B + c, (int)lanes);
                if (k > 0 && k < p->pieces - 1) end += times(load(A + c, (int)lanes), s);
                if (k > 0) store(B + c, s, (int)lanes);
                state[c / LANES] = end;
            }
        }
    free(state);
}

static void run(problem *p, int backward) {
    const int64_t count = p->pieces > 1 ? p->pieces - 1 : 1;
    job j = {p, backward, 0};
    run_tasks(task, &j, p->rows * count * p->blocks, (int)p->threads);
    if (p->pieces == 1) return;
    for (int64_t block = 0; block < p->blocks; ++block) chain(p, block, backward);
    j.phase = 1;
    run_tasks(task, &j, p->rows * count * p->blocks, (int)p->threads);
}
EXPORT void recurrence_forward(problem *p) { run(p, 0); }
EXPORT void recurrence_backward(problem *p) { run(p, 1); }

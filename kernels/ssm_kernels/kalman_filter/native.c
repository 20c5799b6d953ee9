/* Kalman filter on a CPU: many series at once.
 *
 * A task is LANES series, one in each vector lane, from the first step to the last; their means and covariances stay in the
 * first-level cache. Measurements are taken in one at a time (R is diagonal), so nothing is inverted:
 *   s = h' P h + r,   k = P h / s,   m += k e,   P -= k (P h)',   log p = -(e^2 / s + log s + log 2 pi) / 2.
 * A parameter that all series share is read as a scalar and spread over the lanes, any other is packed lane by lane.
 * F and H are mostly zeros in structural models: only their nonzero entries (in any series, at any step) are visited.
 */
#include "../native_common.h"

typedef struct {
    int64_t batch, length, n, c, moments, threads;
    int64_t f_batch, f_step, q_batch, q_step, h_batch, h_step, r_batch, r_step, b_batch, b_step, d_batch, d_step;
    int64_t m0_batch, p0_batch;           /* strides in elements; 0 where an axis is shared */
    const int64_t *f_row, *f_column;      /* nonzeros of F by rows: columns f_column[f_row[i] .. f_row[i + 1]) */
    const int64_t *h_row, *h_column;      /* of H alike */
    const real *f, *q, *h, *r, *b, *d;    /* each parameter contiguous; r is the diagonal of R */
    const real *m0, *p0, *y;              /* y (batch, length, c), NaN where a measurement is missing */
    real *log_likelihood, *mean, *cov;    /* (batch, length); predicted moments, (batch, length + 1 or 1, n), (..., n, n) */
} problem;

/* ---- parameters ---- */
typedef struct {
    const real *now;  /* where all series share it */
    vec *packed;      /* otherwise */
    const real *base;
    int64_t size, batch, step;
} operand;

/* Room for lane-packed parameters is taken from one block. */
static operand operand_of(const real *base, int64_t size, int64_t batch, int64_t step, vec **room) {
    operand o = {.base = base, .size = size, .batch = batch, .step = step, .packed = batch ? *room : NULL};
    if (batch) *room += size;
    return o;
}
static void move_to(operand *o, const int64_t *series, int64_t t) {
    o->now = o->base + t * o->step;
    if (o->packed && (t == 0 || o->step))
        for (int64_t e = 0; e < o->size; ++e)
            for (int i = 0; i < LANES; ++i) o->packed[e][i] = o->now[series[i] * o->batch + e];
}
INLINE vec get(const operand *o, int64_t e) { return o->packed ? o->packed[e] : splat(o->now[e]); }

/* ---- a step ---- */
/* Take in measurement j; ph is scratch of n. Returns its log-likelihood. */
static vec measure(const problem *p, int64_t j, const operand *h, const operand *r, const operand *d, vec value,
                   vec *m, vec *P, vec *ph) {
    const int64_t n = p->n, first = p->h_row[j], last = p->h_row[j + 1];
    const ivec seen = value == value;
    const vec mark = choose(seen, splat(1), splat(0));
    vec s = get(r, j), e = value - get(d, j);
    for (int64_t i = 0; i < n; ++i) ph[i] = splat(0);
    for (int64_t z = first; z < last; ++z) {
        const int64_t k = p->h_column[z];
        const vec c = get(h, j * n + k);
        e -= c * m[k];
        for (int64_t i = 0; i < n; ++i) ph[i] += c * P[k * n + i];
    }
    for (int64_t z = first; z < last; ++z) s += get(h, j * n + p->h_column[z]) * ph[p->h_column[z]];
    e = choose(seen, e, splat(0));
    s = choose(seen, s, splat(1));
    const vec inverse = mark / s;
    for (int64_t i = 0; i < n; ++i) {
        const vec k = ph[i] * inverse;
        m[i] += k * e;
        for (int64_t x = 0; x < n; ++x) P[i * n + x] -= k * ph[x];
    }
    vec log_s;
    for (int i = 0; i < LANES; ++i) log_s[i] = (real)log(s[i]);
    return (real)-0.5 * (e * e * inverse + log_s + mark * (real)1.8378770664093453);
}

/* m = F m + b, P = F P F' + Q; fp is scratch of n n, fm of n. */
static void advance(const problem *p, const operand *f, const operand *q, const operand *b, vec *m, vec *P, vec *fp, vec *fm) {
    const int64_t n = p->n;
    for (int64_t i = 0; i < n; ++i) {
        vec *row = fp + i * n;
        fm[i] = get(b, i);
        for (int64_t x = 0; x < n; ++x) row[x] = splat(0);
        for (int64_t z = p->f_row[i]; z < p->f_row[i + 1]; ++z) {
            const int64_t k = p->f_column[z];
            const vec c = get(f, i * n + k);
            fm[i] += c * m[k];
            for (int64_t x = 0; x < n; ++x) row[x] += c * P[k * n + x];
        }
    }
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i <= j; ++i) P[i * n + j] = get(q, i * n + j);
        for (int64_t z = p->f_row[j]; z < p->f_row[j + 1]; ++z) {
            const int64_t k = p->f_column[z];
            const vec c = get(f, j * n + k);
            for (int64_t i = 0; i <= j; ++i) P[i * n + j] += c * fp[i * n + k];
        }
        for (int64_t i = 0; i < j; ++i) P[j * n + i] = P[i * n + j];
    }
    memcpy(m, fm, (size_t)n * sizeof(vec));
}

/* ---- a group of series ---- */
static void put_moments(const problem *p, const int64_t *series, int64_t lanes, int64_t slot, const vec *m, const vec *P) {
    const int64_t n = p->n, slots = p->moments ? p->length + 1 : 1;
    for (int64_t i = 0; i < lanes; ++i) {
        real *mean = p->mean + (series[i] * slots + slot) * n, *cov = p->cov + (series[i] * slots + slot) * n * n;
        for (int64_t e = 0; e < n; ++e) mean[e] = m[e][i];
        for (int64_t e = 0; e < n * n; ++e) cov[e] = P[e][i];
    }
}

static void filter_group(void *argument, int64_t group) {
    const problem *p = argument;
    const int64_t n = p->n, c = p->c, first = group * LANES;
    const int64_t lanes = p->batch - first < LANES ? p->batch - first : LANES;
    int64_t series[LANES]; /* idle lanes follow the last series */
    for (int64_t i = 0; i < LANES; ++i) series[i] = first + (i < lanes ? i : lanes - 1);

    vec *room = aligned((size_t)(4 * n * n + 4 * n + c * n + 2 * c) * sizeof(vec)), *block = room;
    vec *m = room, *P = m + n, *fp = P + n * n, *fm = fp + n * n, *ph = fm + n;
    room = ph + n;
    operand f = operand_of(p->f, n * n, p->f_batch, p->f_step, &room), q = operand_of(p->q, n * n, p->q_batch, p->q_step, &room);
    operand h = operand_of(p->h, c * n, p->h_batch, p->h_step, &room), r = operand_of(p->r, c, p->r_batch, p->r_step, &room);
    operand b = operand_of(p->b, n, p->b_batch, p->b_step, &room), d = operand_of(p->d, c, p->d_batch, p->d_step, &room);
    for (int64_t e = 0; e < n; ++e)
        for (int i = 0; i < LANES; ++i) m[e][i] = p->m0[series[i] * p->m0_batch + e];
    for (int64_t e = 0; e < n * n; ++e)
        for (int i = 0; i < LANES; ++i) P[e][i] = p->p0[series[i] * p->p0_batch + e];

    for (int64_t t = 0; t < p->length; ++t) {
        if (p->moments) put_moments(p, series, lanes, t, m, P);
        operand *all[] = {&f, &q, &h, &r, &b, &d};
        for (int i = 0; i < 6; ++i) move_to(all[i], series, t);
        vec total = splat(0);
        for (int64_t j = 0; j < c; ++j) {
            vec value;
            for (int i = 0; i < LANES; ++i) value[i] = p->y[(series[i] * p->length + t) * c + j];
            total += measure(p, j, &h, &r, &d, value, m, P, ph);
        }
        for (int64_t i = 0; i < lanes; ++i) p->log_likelihood[series[i] * p->length + t] = total[i];
        advance(p, &f, &q, &b, m, P, fp, fm);
    }
    put_moments(p, series, lanes, p->moments ? p->length : 0, m, P);
    free(block);
}

EXPORT void kalman_forward(problem *p) { run_tasks(filter_group, p, (p->batch + LANES - 1) / LANES, (int)p->threads); }

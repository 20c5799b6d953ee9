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
    const real *dl, *dmean, *dcov;        /* gradients of the outputs; each may be NULL */
    real *df, *dq, *dh, *dr, *db, *dd, *dm0, *dp0, *dy; /* gradients: like the parameters, but a shared axis of series is */
} problem;                                              /* one of groups: partial sums; a shared axis of steps is summed */

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

EXPORT int64_t kalman_lanes(void) { return LANES; }

/* ---- backward, for one measurement a step ----
 * The group is filtered again and its predicted moments are kept, then swept from the last step to the first with the
 * gradients lm and lP of the moments that a step predicts. Covariances are symmetric, and so are their gradients.
 */
typedef struct {
    real *to;
    vec *sum;
    int64_t size, batch, step;
} gradient;

static gradient gradient_of(real *to, const operand *of, vec **room) {
    gradient g = {.to = to, .sum = *room, .size = of->size, .batch = of->batch, .step = of->step};
    *room += of->size;
    memset(g.sum, 0, (size_t)g.size * sizeof(vec));
    return g;
}
/* Write what has gathered: after every step where the parameter has an axis of steps, else at the end. */
static void put(gradient *g, int64_t group, const int64_t *series, int64_t lanes, int64_t t) {
    for (int64_t e = 0; e < g->size; ++e) {
        if (g->batch) for (int64_t i = 0; i < lanes; ++i) g->to[series[i] * g->batch + t * g->step + e] = g->sum[e][i];
        else g->to[group * g->size + e] = lane_sum(g->sum[e]);
        g->sum[e] = splat(0);
    }
}

/* lm, lP: in, gradients of F m + b and F P F' + Q; out, of m and P. fp, lf: scratch of n n. */
static void advance_back(const problem *p, const operand *f, const vec *m, const vec *P, vec *lm, vec *lP, vec *fp, vec *lf,
                         vec *fm, gradient *df, gradient *dq, gradient *db) {
    const int64_t n = p->n;
    for (int64_t i = 0; i < n; ++i) db->sum[i] += lm[i];
    for (int64_t e = 0; e < n * n; ++e) dq->sum[e] += lP[e], fp[e] = splat(0), lf[e] = splat(0);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t z = p->f_row[i]; z < p->f_row[i + 1]; ++z) {
            const int64_t k = p->f_column[z];
            const vec c = get(f, i * n + k);
            for (int64_t x = 0; x < n; ++x) fp[i * n + x] += c * P[k * n + x];
            for (int64_t x = 0; x < n; ++x) lf[k * n + x] += c * lP[i * n + x]; /* F' lP */
        }
    for (int64_t i = 0; i < n; ++i)
        for (int64_t x = 0; x < n; ++x) {
            vec s = lm[i] * m[x];
            for (int64_t k = 0; k < n; ++k) s += 2 * lP[i * n + k] * fp[k * n + x];
            df->sum[i * n + x] += s;
        }
    for (int64_t i = 0; i < n; ++i) fm[i] = splat(0);
    for (int64_t e = 0; e < n * n; ++e) lP[e] = splat(0);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t z = p->f_row[i]; z < p->f_row[i + 1]; ++z) {
            const int64_t k = p->f_column[z];
            const vec c = get(f, i * n + k);
            fm[k] += c * lm[i];
            for (int64_t x = 0; x < n; ++x) lP[x * n + k] += lf[x * n + i] * c; /* F' lP F */
        }
    memcpy(lm, fm, (size_t)n * sizeof(vec));
}

/* lm, lP: in, gradients of the corrected moments; out, of the predicted ones m and P. ph, dph: scratch of n. */
static vec measure_back(const problem *p, const operand *h, const operand *r, const operand *d, vec value, vec dl, const vec *m,
                        const vec *P, vec *lm, vec *lP, vec *ph, vec *dph, gradient *dh, gradient *dr, gradient *dd) {
    const int64_t n = p->n;
    const ivec seen = value == value;
    const vec mark = choose(seen, splat(1), splat(0));
    vec s = get(r, 0), e = value - get(d, 0);
    for (int64_t i = 0; i < n; ++i) ph[i] = splat(0);
    for (int64_t z = 0; z < p->h_row[1]; ++z) {
        const int64_t k = p->h_column[z];
        const vec c = get(h, k);
        e -= c * m[k];
        for (int64_t i = 0; i < n; ++i) ph[i] += c * P[k * n + i];
    }
    for (int64_t z = 0; z < p->h_row[1]; ++z) s += get(h, p->h_column[z]) * ph[p->h_column[z]];
    e = choose(seen, e, splat(0));
    const vec inverse = mark / choose(seen, s, splat(1));
    vec de = -dl * e * inverse, dinverse = (real)-0.5 * dl * e * e;
    for (int64_t i = 0; i < n; ++i) {
        vec lph = splat(0); /* lP ph */
        for (int64_t x = 0; x < n; ++x) lph += lP[i * n + x] * ph[x];
        const vec dk = lm[i] * e - lph;
        de += lm[i] * ph[i] * inverse;
        dinverse += dk * ph[i];
        dph[i] = (dk - lph) * inverse;
    }
    const vec ds = -dinverse * inverse * inverse - (real)0.5 * dl * inverse;
    dr->sum[0] += ds;
    dd->sum[0] -= de;
    for (int64_t i = 0; i < n; ++i) dph[i] += ds * get(h, i) * mark;
    for (int64_t i = 0; i < n; ++i) {
        vec pd = splat(0);
        for (int64_t x = 0; x < n; ++x) pd += P[i * n + x] * dph[x];
        dh->sum[i] += ds * ph[i] + pd - de * m[i];
    }
    for (int64_t z = 0; z < p->h_row[1]; ++z) {
        const int64_t k = p->h_column[z];
        const vec c = get(h, k);
        lm[k] -= de * c;
        for (int64_t i = 0; i < n; ++i) {
            const vec half = (real)0.5 * dph[i] * c;
            lP[i * n + k] += half;
            lP[k * n + i] += half;
        }
    }
    return de;
}

static void add_moments(const problem *p, const int64_t *series, int64_t lanes, int64_t slot, vec *lm, vec *lP) {
    const int64_t n = p->n, slots = p->moments ? p->length + 1 : 1;
    for (int64_t i = 0; i < lanes; ++i) {
        const int64_t place = series[i] * slots + slot;
        for (int64_t e = 0; p->dmean && e < n; ++e) lm[e][i] += p->dmean[place * n + e];
        for (int64_t a = 0; p->dcov && a < n; ++a)
            for (int64_t b = 0; b < n; ++b)
                lP[a * n + b][i] += (p->dcov[(place * n + a) * n + b] + p->dcov[(place * n + b) * n + a]) / 2;
    }
}

static void gradient_group(void *argument, int64_t group) {
    const problem *p = argument;
    const int64_t n = p->n, first = group * LANES, moments = n + n * n;
    const int64_t lanes = p->batch - first < LANES ? p->batch - first : LANES;
    int64_t series[LANES];
    for (int64_t i = 0; i < LANES; ++i) series[i] = first + (i < lanes ? i : lanes - 1);

    vec *room = aligned((size_t)((p->length + 1) * moments + 10 * n * n + 12 * n + 4) * sizeof(vec)), *kept = room;
    vec *lm = kept + (p->length + 1) * moments, *lP = lm + n, *now = lP + n * n, *fp = now + moments, *lf = fp + n * n;
    vec *fm = lf + n * n, *ph = fm + n, *dph = ph + n;
    room = dph + n;
    operand f = operand_of(p->f, n * n, p->f_batch, p->f_step, &room), q = operand_of(p->q, n * n, p->q_batch, p->q_step, &room);
    operand h = operand_of(p->h, n, p->h_batch, p->h_step, &room), r = operand_of(p->r, 1, p->r_batch, p->r_step, &room);
    operand b = operand_of(p->b, n, p->b_batch, p->b_step, &room), d = operand_of(p->d, 1, p->d_batch, p->d_step, &room);
    operand *all[] = {&f, &q, &h, &r, &b, &d};
    real *to[] = {p->df, p->dq, p->dh, p->dr, p->db, p->dd};
    gradient g[6];
    for (int i = 0; i < 6; ++i) g[i] = gradient_of(to[i], all[i], &room);

    for (int64_t e = 0; e < n; ++e)
        for (int i = 0; i < LANES; ++i) kept[e][i] = p->m0[series[i] * p->m0_batch + e];
    for (int64_t e = 0; e < n * n; ++e)
        for (int i = 0; i < LANES; ++i) kept[n + e][i] = p->p0[series[i] * p->p0_batch + e];
#define VALUE(v, t) vec v; for (int i_ = 0; i_ < LANES; ++i_) v[i_] = p->y[series[i_] * p->length + (t)]
    for (int64_t t = 0; t < p->length; ++t) {
        vec *m = kept + (t + 1) * moments;
        memcpy(m, m - moments, (size_t)moments * sizeof(vec));
        for (int i = 0; i < 6; ++i) move_to(all[i], series, t);
        VALUE(value, t);
        measure(p, 0, &h, &r, &d, value, m, m + n, ph);
        advance(p, &f, &q, &b, m, m + n, fp, fm);
    }
    memset(lm, 0, (size_t)moments * sizeof(vec));
    if (!p->moments) add_moments(p, series, lanes, 0, lm, lP);
    for (int64_t t = p->length - 1; t >= 0; --t) {
        const vec *m = kept + t * moments;
        if (p->moments) add_moments(p, series, lanes, t + 1, lm, lP);
        for (int i = 0; i < 6; ++i)
            if (all[i]->step || t == 0) move_to(all[i], series, t);
        VALUE(value, t);
        memcpy(now, m, (size_t)moments * sizeof(vec));
        measure(p, 0, &h, &r, &d, value, now, now + n, ph);
        advance_back(p, &f, now, now + n, lm, lP, fp, lf, fm, &g[0], &g[1], &g[4]);
        vec dl = splat(0);
        for (int64_t i = 0; p->dl && i < lanes; ++i) dl[i] = p->dl[series[i] * p->length + t];
        const vec de = measure_back(p, &h, &r, &d, value, dl, m, m + n, lm, lP, ph, dph, &g[2], &g[3], &g[5]);
        for (int64_t i = 0; i < lanes; ++i) p->dy[series[i] * p->length + t] = de[i];
        for (int i = 0; i < 6; ++i)
            if (g[i].step) put(&g[i], group, series, lanes, t);
    }
    if (p->moments) add_moments(p, series, lanes, 0, lm, lP);
    for (int i = 0; i < 6; ++i)
        if (!g[i].step) put(&g[i], group, series, lanes, 0);
    gradient gm = {.to = p->dm0, .sum = lm, .size = n, .batch = p->m0_batch};
    gradient gp = {.to = p->dp0, .sum = lP, .size = n * n, .batch = p->p0_batch};
    put(&gm, group, series, lanes, 0);
    put(&gp, group, series, lanes, 0);
    free(kept);
}

EXPORT void kalman_backward(problem *p) { run_tasks(gradient_group, p, (p->batch + LANES - 1) / LANES, (int)p->threads); }

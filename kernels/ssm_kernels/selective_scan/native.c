/* Selective scan on a CPU, forward and backward:  h = a h + w B x,  y = Re(C h) + D x,  out = y silu(z).
 *
 * Work is cut into tiles of TILE channels by CHUNK steps that live in the first-level cache: channels are vector lanes,
 * h and A stay in registers, B and C are broadcast loads. Loop order: row > chunk > tile > state n > step.
 * Forward saves h at every chunk's start; backward walks the chunks in reverse, computes a and h again into scratch, then
 * runs the adjoint recurrence. dB and dC are sums over channels: they are kept as lane-wise partial sums of a whole chunk
 * and folded across lanes once. Nothing of size (b, l, d, n) is ever stored, and every sum has a fixed order.
 *
 * "Packed" arrays (A, states, constant B and C) come as [tile][n][plane][TILE], plane = real, imaginary; lanes past a
 * group's last channel are zero. native.py makes them.
 */
#include "../native_common.h"

#ifndef CHUNK
#define CHUNK (VECTOR_BYTES == 64 ? 16 : 32) /* so that backward's partial sums fit the first-level cache */
#endif
#ifndef WIDE
#define WIDE (VECTOR_BYTES == 16 ? 4 : 2)
#endif
#define TILE (WIDE * LANES)
#define FOR_WIDE _Pragma("GCC unroll 8") for (int w = 0; w < WIDE; ++w)

#ifdef SSM_COMPLEX
#define PLANES 2
#define READOUT 2 /* a complex state stands for a conjugate pair: y = 2 Re(C h) */
#else
#define PLANES 1
#define READOUT 1
#endif

enum { EULER, ZOH, BILINEAR };

typedef struct {
    int64_t batch, length, rows, d, n, groups, row_groups, blocks;
    int64_t rule, softplus, reverse, constant_B, constant_C, threads;
    const int64_t *row, *first_chunk;                            /* (batch, start, length) of each row; its first boundary */
    const real *x, *dt, *z, *A, *B, *C, *D, *bias, *h0;          /* z, D, bias, h0 may be NULL */
    int64_t x_batch, x_step, dt_batch, dt_step, z_batch, z_step; /* strides in elements; channels are contiguous */
    int64_t B_batch, B_step, B_group, C_batch, C_step, C_group;
    int64_t y_batch, y_step;                                     /* of y, and of dx, ddt, dz */
    real *y, *last, *boundaries;                                 /* last, boundaries may be NULL */
    const real *dy, *dlast;
    int64_t dy_batch, dy_step;
    real *dx, *ddt, *dz, *dA, *dB, *dC, *dD, *dbias, *dh0;
} problem;

/* ---- numbers: real, or complex as two vectors ---- */
typedef struct {
    vec re;
#ifdef SSM_COMPLEX
    vec im;
#endif
} num;

#ifdef SSM_COMPLEX
INLINE num num_of(vec re, vec im) { return (num){re, im}; }
INLINE num add(num a, num b) { return num_of(a.re + b.re, a.im + b.im); }
INLINE num sub(num a, num b) { return num_of(a.re - b.re, a.im - b.im); }
INLINE num mul(num a, num b) { return num_of(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re); }
INLINE num scale(vec s, num a) { return num_of(s * a.re, s * a.im); }
INLINE num conj_of(num a) { return num_of(a.re, -a.im); }
INLINE vec re_of_product(num a, num b) { return a.re * b.re - a.im * b.im; }
INLINE vec norm(num a) { return a.re * a.re + a.im * a.im; }
INLINE num pick(ivec m, num a, num b) { return num_of(choose(m, a.re, b.re), choose(m, a.im, b.im)); }
INLINE num spread(const real *p) { return num_of(splat(p[0]), splat(p[1])); }
INLINE num get(const vec *p, int w) { return num_of(p[w], p[WIDE + w]); }
INLINE void put(vec *p, int w, num a) { p[w] = a.re, p[WIDE + w] = a.im; }
INLINE num get_sum(const vec *p) { return num_of(p[0], p[1]); }
INLINE void put_sum(vec *p, num a) { p[0] = a.re, p[1] = a.im; }
INLINE num real_num(vec re) { return num_of(re, (vec){0}); }
INLINE num decay_any(vec dt, num A) {
    vec s, c, size = exp_any(dt * A.re);
    sin_cos(dt * A.im, &s, &c);
    return num_of(size * c, size * s);
}
INLINE num decay_small(vec dt, num A2) { return decay_any(dt, A2); }
#else
INLINE num num_of(vec re) { return (num){re}; }
INLINE num add(num a, num b) { return num_of(a.re + b.re); }
INLINE num sub(num a, num b) { return num_of(a.re - b.re); }
INLINE num mul(num a, num b) { return num_of(a.re * b.re); }
INLINE num scale(vec s, num a) { return num_of(s * a.re); }
INLINE num conj_of(num a) { return a; }
INLINE vec re_of_product(num a, num b) { return a.re * b.re; }
INLINE vec norm(num a) { return a.re * a.re; }
INLINE num pick(ivec m, num a, num b) { return num_of(choose(m, a.re, b.re)); }
INLINE num spread(const real *p) { return num_of(splat(p[0])); }
INLINE num get(const vec *p, int w) { return num_of(p[w]); }
INLINE void put(vec *p, int w, num a) { p[w] = a.re; }
INLINE num get_sum(const vec *p) { return num_of(p[0]); }
INLINE void put_sum(vec *p, num a) { p[0] = a.re; }
INLINE num real_num(vec re) { return num_of(re); }
INLINE num decay_any(vec dt, num A) { return num_of(exp_any(dt * A.re)); }
INLINE num decay_small(vec dt, num A2) { return num_of(exp2_small(dt * A2.re)); } /* A2 = A log2(e) */
#endif
INLINE num inverse(num a) { return scale(1 / norm(a), conj_of(a)); }

/* ---- discretisation: h = a h + w B x, with the derivatives of a and w (zoo of rules: Mamba appendix, S4 eq. 3) ---- */
typedef struct {
    num a, w, a_dt, a_A, w_dt, w_A;
} step_rule;

#define SERIES 15
/* sum of c[k] u^k */
INLINE num series(const real *c, num u) {
    num s = real_num(splat(c[SERIES - 1]));
    for (int k = SERIES - 2; k >= 0; --k) s = add(mul(s, u), real_num(splat(c[k])));
    return s;
}
static real phi[SERIES], chi[SERIES]; /* expm1(u)/u and (e^u (u - 1) + 1)/u^2 */
__attribute__((constructor)) static void fill_series(void) {
    double factorial = 1;
    for (int k = 0; k < SERIES; ++k) {
        phi[k] = (real)(1 / (factorial * (k + 1)));
        chi[k] = (real)(1 / (factorial * (k + 2)));
        factorial *= k + 1;
    }
}

INLINE step_rule coefficients(int64_t rule, vec dt, num A, int derivatives) {
    step_rule s = {0};
    num u = scale(dt, A), one = real_num(splat(1));
    if (rule == BILINEAR) {
        num q = inverse(sub(one, scale(splat((real)0.5), u)));
        s.w = scale(dt, q);
        s.a = mul(add(one, scale(splat((real)0.5), u)), q);
        if (derivatives) {
            num q2 = mul(q, q);
            s.a_dt = mul(A, q2), s.a_A = scale(dt, q2);
            s.w_dt = q2, s.w_A = scale((real)0.5 * dt * dt, q2);
        }
        return s;
    }
    s.a = decay_any(dt, A);
    if (derivatives) s.a_dt = mul(A, s.a), s.a_A = scale(dt, s.a);
    if (rule == EULER) {
        s.w = real_num(dt);
        if (derivatives) s.w_dt = one;
        return s;
    }
    ivec tiny = norm(u) < (real)0.25; /* there expm1(u)/u loses digits as a quotient */
    num over_A = inverse(pick(tiny, one, A));
    s.w = pick(tiny, scale(dt, series(phi, u)), mul(sub(s.a, one), over_A));
    if (derivatives) {
        s.w_dt = s.a;
        s.w_A = pick(tiny, scale(dt * dt, series(chi, u)), mul(sub(scale(dt, s.a), s.w), over_A));
    }
    return s;
}

#ifndef MANY
#define MANY 2
#endif
#define FOR_MANY _Pragma("GCC unroll 8") for (int m = 0; m < many; ++m)

/* ---- a tile: TILE channels by CHUNK steps, in scan order ---- */
typedef struct {
    vec dt[CHUNK][WIDE], u[CHUNK][WIDE], y[CHUNK][WIDE];
    /* backward only */
    vec x[CHUNK][WIDE], slope[CHUNK][WIDE], gate[CHUNK][WIDE], gy[CHUNK][WIDE], s1[CHUNK][WIDE], s2[CHUNK][WIDE];
    vec a[CHUNK][MANY][PLANES * WIDE], h[CHUNK + 1][MANY][PLANES * WIDE];
} tile;

typedef struct {
    int64_t batch, first, sign; /* the chunk's first time step in scan order; +1 or -1 */
    int steps;
    int64_t channel, width, group, index;
    int lanes[WIDE];
} place;

INLINE int64_t tiles_a_group(const problem *p) { return (p->d / p->groups + TILE - 1) / TILE; }
INLINE const real *at(const real *base, int64_t batch, int64_t step, const place *q, int i) {
    return base + q->batch * batch + (q->first + q->sign * i) * step + q->channel;
}
static void set_tile(const problem *p, place *q, int64_t index) {
    int64_t a_group = p->d / p->groups, local = index % tiles_a_group(p) * TILE;
    q->index = index, q->group = index / tiles_a_group(p);
    q->channel = q->group * a_group + local;
    q->width = a_group - local < TILE ? a_group - local : TILE;
    FOR_WIDE q->lanes[w] = (int)(q->width - w * LANES < 0 ? 0 : q->width - w * LANES);
}
static void set_chunk(const problem *p, place *q, const int64_t *row, int64_t done) {
    int64_t left = row[2] - done;
    q->batch = row[0], q->sign = p->reverse ? -1 : 1;
    q->first = p->reverse ? row[1] + row[2] - 1 - done : row[1] + done;
    q->steps = (int)(left < CHUNK ? left : CHUNK);
}
INLINE const real *b_row(const problem *p, const place *q, int64_t n) {
    return p->B + q->batch * p->B_batch + q->first * p->B_step + q->group * p->B_group + n * PLANES;
}
INLINE const real *c_row(const problem *p, const place *q, int64_t n) {
    return p->C + q->batch * p->C_batch + q->first * p->C_step + q->group * p->C_group + n * PLANES;
}
INLINE const vec *packed(const real *base, const problem *p, const place *q, int64_t n) {
    return (const vec *)(base + (q->index * p->n + n) * PLANES * TILE);
}
/* Fast: Mamba's own case, Euler with varying B and C, and no |dt A| so large that 2^u needs clamping. */
static int is_plain(const problem *p) { return p->rule == EULER && !p->constant_B && !p->constant_C && PLANES == 1; }
static real largest_decay(const problem *p, const place *q) {
    vec m = {0};
    for (int64_t n = 0; n < p->n; ++n) FOR_WIDE {
        vec v = vabs(packed(p->A, p, q, n)[w]);
        m = choose(v > m, v, m);
    }
    return lane_max(m) * (real)1.4426950408889634;
}

/* A, ready for the decay of this path. */
INLINE num rate(const vec *A_n, int w, int fast) {
    return fast ? scale(splat((real)1.4426950408889634), get(A_n, w)) : get(A_n, w);
}
/* B or C of state n: constant per channel, or one number for all channels of the group. */
INLINE num projection(const real *base, int64_t constant, const real *row, const problem *p, const place *q, int64_t n,
                      int m, int w, int fast) {
    return !fast && constant ? get(packed(base, p, q, n), w) : spread(row + m * PLANES);
}
/* One step of the recurrence; *decay gets a. */
INLINE num advance(const problem *p, vec dt, vec u, num A, num h, num B, int fast, num *decay) {
    num a, input;
    if (fast) {
        a = decay_small(dt, A), input = scale(u, B);
    } else {
        step_rule s = coefficients(p->rule, dt, A, 0);
        a = s.a, input = scale(u, mul(s.w, B));
    }
    if (decay) *decay = a;
    return add(mul(a, h), input);
}

/* Rows are far apart, so the hardware does not see the next tile's inputs and this tile's outputs coming. */
INLINE void prefetch_next(const real *row) { FOR_WIDE __builtin_prefetch(row + TILE + w * LANES); }
INLINE void prefetch_write(const real *row) { FOR_WIDE __builtin_prefetch(row + w * LANES, 1); }
INLINE void prefetch_rows(const problem *p, const place *q, int i, int backward) {
    prefetch_next(at(p->x, p->x_batch, p->x_step, q, i)), prefetch_next(at(p->dt, p->dt_batch, p->dt_step, q, i));
    if (p->z) prefetch_next(at(p->z, p->z_batch, p->z_step, q, i));
    if (!backward) {
        prefetch_write(at(p->y, p->y_batch, p->y_step, q, i));
        return;
    }
    prefetch_next(at(p->dy, p->dy_batch, p->dy_step, q, i));
    prefetch_write(at(p->dx, p->y_batch, p->y_step, q, i)), prefetch_write(at(p->ddt, p->y_batch, p->y_step, q, i));
    if (p->z) prefetch_write(at(p->dz, p->y_batch, p->y_step, q, i));
}

/* Reads the tile's inputs; returns the largest |dt|. */
INLINE real read_inputs(const problem *p, const place *q, tile *t, int fast, int backward) {
    vec bias[WIDE], skip[WIDE], most = {0};
    FOR_WIDE bias[w] = p->bias ? load(p->bias + q->channel + w * LANES, q->lanes[w]) : (vec){0};
    FOR_WIDE skip[w] = p->D ? load(p->D + q->channel + w * LANES, q->lanes[w]) / READOUT : (vec){0};
    for (int i = 0; i < q->steps; ++i) {
        const real *dt_row = at(p->dt, p->dt_batch, p->dt_step, q, i), *x_row = at(p->x, p->x_batch, p->x_step, q, i);
        FOR_WIDE {
            vec x = load(x_row + w * LANES, q->lanes[w]), slope = splat(1);
            vec dt = load(dt_row + w * LANES, q->lanes[w]) + bias[w];
            if (p->softplus) dt = softplus(dt, &slope);
            t->dt[i][w] = dt, t->u[i][w] = fast ? dt * x : x, t->y[i][w] = skip[w] * x;
            vec size = vabs(dt);
            most = choose(size <= most, most, size); /* a NaN becomes the largest */
            if (backward) t->x[i][w] = x, t->slope[i][w] = slope, t->s1[i][w] = t->s2[i][w] = (vec){0};
        }
        prefetch_rows(p, q, i, backward);
    }
    return lane_max(most);
}

/* ---- forward ---- */
/* States n .. n + many - 1 are scanned together, so that they share the loads of dt, u and y. */
INLINE void scan_forward(const problem *p, const place *q, tile *t, vec *state, int64_t n, int many, int fast) {
    const int64_t b_step = q->sign * p->B_step, c_step = q->sign * p->C_step;
    const real *b = b_row(p, q, n), *c = c_row(p, q, n);
    num A[MANY][WIDE], h[MANY][WIDE];
    FOR_MANY FOR_WIDE A[m][w] = rate(packed(p->A, p, q, n + m), w, fast), h[m][w] = get(state + m * PLANES * WIDE, w);
    for (int i = 0; i < q->steps; ++i) {
        FOR_WIDE {
            const vec dt = t->dt[i][w], u = t->u[i][w];
            vec y = t->y[i][w];
            FOR_MANY {
                h[m][w] = advance(p, dt, u, A[m][w], h[m][w], projection(p->B, p->constant_B, b, p, q, n + m, m, w, fast), fast, NULL);
                y += re_of_product(projection(p->C, p->constant_C, c, p, q, n + m, m, w, fast), h[m][w]);
            }
            t->y[i][w] = y;
        }
        b += b_step, c += c_step;
    }
    FOR_MANY FOR_WIDE put(state + m * PLANES * WIDE, w, h[m][w]);
}

static void write_output(const problem *p, const place *q, const tile *t) {
    for (int i = 0; i < q->steps; ++i) {
        real *y_row = (real *)at(p->y, p->y_batch, p->y_step, q, i);
        FOR_WIDE {
            vec y = READOUT * t->y[i][w];
            if (p->z) {
                vec z = load(at(p->z, p->z_batch, p->z_step, q, i) + w * LANES, q->lanes[w]);
                y *= z * sigmoid(z);
            }
            store(y_row + w * LANES, y, q->lanes[w]);
        }
    }
}

/* The rows and tiles of task `index`; tasks are row group by channel block. */
typedef struct {
    int64_t row_group, block, first_row, end_row, first_tile, end_tile, tiles;
} share;
static share share_of(const problem *p, int64_t index) {
    share s = {.row_group = index / p->blocks, .block = index % p->blocks};
    s.tiles = tiles_a_group(p) * p->groups;
    s.first_row = p->rows * s.row_group / p->row_groups, s.end_row = p->rows * (s.row_group + 1) / p->row_groups;
    s.first_tile = s.tiles * s.block / p->blocks, s.end_tile = s.tiles * (s.block + 1) / p->blocks;
    return s;
}

static void forward_task(void *argument, int64_t index) {
    const problem *p = argument;
    share s = share_of(p, index);
    const int64_t size = p->n * PLANES * WIDE; /* vectors of one tile's state */
    vec *states = aligned((size_t)((s.end_tile - s.first_tile) * size) * sizeof(vec));
    real *limits = aligned((size_t)(s.end_tile - s.first_tile) * sizeof(real));
    tile *t = aligned(sizeof(tile));
    place q;
    for (int64_t k = s.first_tile; k < s.end_tile; ++k) set_tile(p, &q, k), limits[k - s.first_tile] = largest_decay(p, &q);
    for (int64_t r = s.first_row; r < s.end_row; ++r) {
        const int64_t *row = p->row + 3 * r, packed_row = r * s.tiles * size;
        const size_t bytes = (size_t)((s.end_tile - s.first_tile) * size) * sizeof(vec);
        if (p->h0) memcpy(states, (const vec *)p->h0 + packed_row + s.first_tile * size, bytes);
        else memset(states, 0, bytes);
        for (int64_t done = 0, chunk = 0; done < row[2]; done += CHUNK, ++chunk) {
            set_chunk(p, &q, row, done);
            if (p->boundaries)
                memcpy((vec *)p->boundaries + ((p->first_chunk[r] + chunk) * s.tiles + s.first_tile) * size, states, bytes);
            for (int64_t k = s.first_tile; k < s.end_tile; ++k) {
                set_tile(p, &q, k);
                vec *state = states + (k - s.first_tile) * size;
                int fast = is_plain(p);
                if (fast) fast = read_inputs(p, &q, t, 1, 0) * limits[k - s.first_tile] < EXP2_LIMIT;
                if (!fast) read_inputs(p, &q, t, 0, 0);
                for (int64_t n = 0; n < p->n; n += MANY, state += MANY * PLANES * WIDE) {
                    if (n + MANY > p->n) scan_forward(p, &q, t, state, n, 1, fast);
                    else if (fast) scan_forward(p, &q, t, state, n, MANY, 1);
                    else scan_forward(p, &q, t, state, n, MANY, 0);
                }
                write_output(p, &q, t);
            }
        }
        if (p->last) memcpy((vec *)p->last + packed_row + s.first_tile * size, states, bytes);
    }
    free(states), free(limits), free(t);
}

/* ---- backward ---- */
#define SUM_STRIDE (CHUNK + 1) /* odd: a power of two would put every nth row on the same cache sets */
typedef struct {
    vec (*B)[PLANES], (*C)[PLANES]; /* [n][SUM_STRIDE] lane-wise partial sums of dB and dC */
} partial;

INLINE void scan_again(const problem *p, const place *q, tile *t, const vec *boundary, int64_t n, int many, int fast) {
    const int64_t b_step = q->sign * p->B_step, c_step = q->sign * p->C_step;
    const real *b = b_row(p, q, n), *c = c_row(p, q, n);
    num A[MANY][WIDE], h[MANY][WIDE], a;
    FOR_MANY FOR_WIDE {
        A[m][w] = rate(packed(p->A, p, q, n + m), w, fast), h[m][w] = get(boundary + m * PLANES * WIDE, w);
        put(t->h[0][m], w, h[m][w]);
    }
    for (int i = 0; i < q->steps; ++i) {
        FOR_WIDE {
            const vec dt = t->dt[i][w], u = t->u[i][w];
            vec y = {0};
            FOR_MANY {
                h[m][w] = advance(p, dt, u, A[m][w], h[m][w], projection(p->B, p->constant_B, b, p, q, n + m, m, w, fast), fast, &a);
                put(t->a[i][m], w, a), put(t->h[i + 1][m], w, h[m][w]);
                if (p->z) y += re_of_product(projection(p->C, p->constant_C, c, p, q, n + m, m, w, fast), h[m][w]);
            }
            if (p->z) t->y[i][w] += y;
        }
        b += b_step, c += c_step;
    }
}

/* The adjoint recurrence. g = dLoss/dh[t]; carry brings a[t+1] g[t+1] in and takes a[0] g[0] out. */
INLINE void scan_back(const problem *p, const place *q, tile *t, vec *carry, vec *dA, vec *dB, vec *dC, partial sums,
                      int64_t n, int many, int fast) {
    const int64_t b_step = q->sign * p->B_step, c_step = q->sign * p->C_step, stride = PLANES * WIDE;
    const real *b = b_row(p, q, n) + (q->steps - 1) * b_step, *c = c_row(p, q, n) + (q->steps - 1) * c_step;
    num A[MANY][WIDE], g[MANY][WIDE], gA[MANY][WIDE], gB[MANY][WIDE], gC[MANY][WIDE], after[MANY][WIDE];
    FOR_MANY FOR_WIDE {
        A[m][w] = get(packed(p->A, p, q, n + m), w);
        g[m][w] = get(carry + m * stride, w), gA[m][w] = get(dA + m * stride, w);
        gB[m][w] = gC[m][w] = real_num((vec){0});
        after[m][w] = get(t->h[q->steps][m], w);
    }
    for (int i = q->steps - 1; i >= 0; --i) {
        num to_B[MANY], to_C[MANY];
        FOR_MANY to_B[m] = get_sum(sums.B[(n + m) * SUM_STRIDE + i]), to_C[m] = get_sum(sums.C[(n + m) * SUM_STRIDE + i]);
        FOR_WIDE {
            const vec gy = t->gy[i][w], u = t->u[i][w], dt = t->dt[i][w];
            vec s1 = t->s1[i][w], s2 = t->s2[i][w];
            FOR_MANY {
                num B = projection(p->B, p->constant_B, b, p, q, n + m, m, w, fast);
                num C = projection(p->C, p->constant_C, c, p, q, n + m, m, w, fast);
                num before = get(t->h[i][m], w), now = add(g[m][w], scale(gy, conj_of(C))), dB_now;
                if (fast) {
                    dB_now = scale(u, now);
                    s1 += re_of_product(now, conj_of(B));
                    g[m][w] = mul(now, conj_of(get(t->a[i][m], w)));
                    num to_log = mul(g[m][w], conj_of(before));
                    s2 += re_of_product(to_log, conj_of(A[m][w]));
                    gA[m][w] = add(gA[m][w], scale(dt, to_log));
                } else {
                    step_rule s = coefficients(p->rule, dt, A[m][w], 1);
                    num to_a = mul(now, conj_of(before)), to_w = scale(u, mul(now, conj_of(B)));
                    dB_now = scale(u, mul(now, conj_of(s.w)));
                    s1 += re_of_product(now, conj_of(mul(s.w, B)));
                    s2 += re_of_product(to_a, conj_of(s.a_dt)) + re_of_product(to_w, conj_of(s.w_dt));
                    gA[m][w] = add(gA[m][w], add(mul(to_a, conj_of(s.a_A)), mul(to_w, conj_of(s.w_A))));
                    g[m][w] = mul(now, conj_of(s.a));
                }
                if (!fast && p->constant_B) gB[m][w] = add(gB[m][w], dB_now);
                else to_B[m] = add(to_B[m], dB_now);
                num dC_now = scale(gy, conj_of(after[m][w]));
                if (!fast && p->constant_C) gC[m][w] = add(gC[m][w], dC_now);
                else to_C[m] = add(to_C[m], dC_now);
                after[m][w] = before;
            }
            t->s1[i][w] = s1, t->s2[i][w] = s2;
        }
        FOR_MANY put_sum(sums.B[(n + m) * SUM_STRIDE + i], to_B[m]), put_sum(sums.C[(n + m) * SUM_STRIDE + i], to_C[m]);
        b -= b_step, c -= c_step;
    }
    FOR_MANY FOR_WIDE {
        put(carry + m * stride, w, g[m][w]), put(dA + m * stride, w, gA[m][w]);
        if (!fast && p->constant_B) put(dB + m * stride, w, add(get(dB + m * stride, w), gB[m][w]));
        if (!fast && p->constant_C) put(dC + m * stride, w, add(get(dC + m * stride, w), gC[m][w]));
    }
}

static void read_gradient(const problem *p, const place *q, tile *t) {
    for (int i = 0; i < q->steps; ++i) {
        const real *dy_row = at(p->dy, p->dy_batch, p->dy_step, q, i);
        FOR_WIDE {
            vec gy = load(dy_row + w * LANES, q->lanes[w]);
            if (p->z) {
                vec z = load(at(p->z, p->z_batch, p->z_step, q, i) + w * LANES, q->lanes[w]);
                t->gate[i][w] = sigmoid(z);
                gy *= z * t->gate[i][w];
            }
            t->gy[i][w] = READOUT * gy;
        }
    }
}

static void write_gradients(const problem *p, const place *q, tile *t, vec *dD, vec *dbias, int fast) {
    vec skip[WIDE];
    FOR_WIDE skip[w] = p->D ? load(p->D + q->channel + w * LANES, q->lanes[w]) : (vec){0};
    for (int i = 0; i < q->steps; ++i) {
        FOR_WIDE {
            const int lanes = q->lanes[w];
            vec x = t->x[i][w], gy = t->gy[i][w] / READOUT, s1 = t->s1[i][w];
            vec dx = skip[w] * gy + (fast ? t->dt[i][w] * s1 : s1);
            vec ddt = (fast ? x * s1 + t->s2[i][w] : t->s2[i][w]) * t->slope[i][w];
            store((real *)at(p->dx, p->y_batch, p->y_step, q, i) + w * LANES, dx, lanes);
            store((real *)at(p->ddt, p->y_batch, p->y_step, q, i) + w * LANES, ddt, lanes);
            dD[w] += gy * x, dbias[w] += ddt;
            if (p->z) {
                vec z = load(at(p->z, p->z_batch, p->z_step, q, i) + w * LANES, lanes), gate = t->gate[i][w];
                vec dy = load(at(p->dy, p->dy_batch, p->dy_step, q, i) + w * LANES, lanes);
                vec dz = dy * READOUT * t->y[i][w] * gate * (1 + z * (1 - gate));
                store((real *)at(p->dz, p->y_batch, p->y_step, q, i) + w * LANES, dz, lanes);
            }
        }
    }
}

/* Lane j of the result is the sum of the lanes of v[j]: merge pairs at half the distance each time. */
#ifdef __clang__
#define SHUFFLE(v, index) ({ vec moved; for (int l_ = 0; l_ < LANES; ++l_) moved[l_] = (v)[(index)[l_]]; moved; })
#else
#define SHUFFLE(v, index) __builtin_shuffle(v, index)
#endif
INLINE vec fold_lanes(vec *v) {
    ivec lane;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) lane[i] = i;
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2) {
        ivec upper = (lane & half) != 0;
#pragma GCC unroll 8
        for (int j = 0; j < half; ++j) {
            vec mine = choose(upper, v[j + half], v[j]), other = choose(upper, v[j], v[j + half]);
            v[j] = mine + SHUFFLE(other, lane ^ half);
        }
    }
    return v[0];
}

/* Adds one chunk's partial sums, folded, to `out` (blocks, batch, length, groups, n, planes), and clears them. */
static void flush_sums(const problem *p, const place *q, int64_t block, vec (*sums)[PLANES], real *out) {
    const int64_t values = p->n * PLANES;
    for (int i = 0; i < q->steps; ++i) {
        const int64_t step = (block * p->batch + q->batch) * p->length + q->first + q->sign * i;
        real *target = out + (step * p->groups + q->group) * values;
        for (int64_t k = 0; k < values; k += LANES) {
            vec v[LANES];
            const int count = (int)(values - k < LANES ? values - k : LANES);
            if (count == LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j) {
                    vec *from = &sums[(k + j) / PLANES * SUM_STRIDE + i][(k + j) % PLANES];
                    v[j] = *from, *from = (vec){0};
                }
                store(target + k, load(target + k, LANES) + fold_lanes(v), LANES);
            } else {
                for (int j = 0; j < count; ++j) {
                    vec *from = &sums[(k + j) / PLANES * SUM_STRIDE + i][(k + j) % PLANES];
                    target[k + j] += lane_sum(*from), *from = (vec){0};
                }
            }
        }
    }
}

static void backward_task(void *argument, int64_t index) {
    const problem *p = argument;
    share s = share_of(p, index);
    const int64_t size = p->n * PLANES * WIDE, mine = s.end_tile - s.first_tile, a_group = tiles_a_group(p);
    const size_t bytes = (size_t)(mine * size) * sizeof(vec), sum_bytes = (size_t)(SUM_STRIDE * p->n * PLANES) * sizeof(vec);
    vec *carries = aligned(bytes), *dD = aligned((size_t)(mine * WIDE) * sizeof(vec)), *dbias = aligned((size_t)(mine * WIDE) * sizeof(vec));
    real *limits = aligned((size_t)mine * sizeof(real));
    tile *t = aligned(sizeof(tile));
    partial sums = {aligned(sum_bytes), aligned(sum_bytes)};
    memset(sums.B, 0, sum_bytes), memset(sums.C, 0, sum_bytes);
    memset(dD, 0, (size_t)(mine * WIDE) * sizeof(vec)), memset(dbias, 0, (size_t)(mine * WIDE) * sizeof(vec));
    /* dA and the gradients of constant B and C: this row group's own packed copy, zeroed by the caller */
    const int64_t own = s.row_group * s.tiles * size;
    vec *dA = (vec *)p->dA + own, *dB = p->constant_B ? (vec *)p->dB + own : NULL, *dC = p->constant_C ? (vec *)p->dC + own : NULL;
    place q;
    for (int64_t k = s.first_tile; k < s.end_tile; ++k) set_tile(p, &q, k), limits[k - s.first_tile] = largest_decay(p, &q);
    for (int64_t r = s.first_row; r < s.end_row; ++r) {
        const int64_t *row = p->row + 3 * r, packed_row = r * s.tiles * size;
        if (p->dlast) memcpy(carries, (const vec *)p->dlast + packed_row + s.first_tile * size, bytes);
        else memset(carries, 0, bytes);
        for (int64_t chunk = (row[2] + CHUNK - 1) / CHUNK - 1; chunk >= 0; --chunk) {
            set_chunk(p, &q, row, chunk * CHUNK);
            for (int64_t k = s.first_tile; k < s.end_tile; ++k) {
                set_tile(p, &q, k);
                const int64_t local = k - s.first_tile;
                int fast = is_plain(p);
                if (fast) fast = read_inputs(p, &q, t, 1, 1) * limits[local] < EXP2_LIMIT;
                if (!fast) read_inputs(p, &q, t, 0, 1);
                read_gradient(p, &q, t);
                const vec *boundary = (const vec *)p->boundaries + ((p->first_chunk[r] + chunk) * s.tiles + k) * size;
                for (int64_t n = 0; n < p->n; n += MANY) {
                    const int64_t at_n = n * PLANES * WIDE, slot = k * size + at_n;
                    vec *carry = carries + local * size + at_n, *dB_n = dB ? dB + slot : NULL, *dC_n = dC ? dC + slot : NULL;
                    if (n + MANY > p->n) {
                        scan_again(p, &q, t, boundary + at_n, n, 1, fast);
                        scan_back(p, &q, t, carry, dA + slot, dB_n, dC_n, sums, n, 1, fast);
                    } else if (fast) {
                        scan_again(p, &q, t, boundary + at_n, n, MANY, 1);
                        scan_back(p, &q, t, carry, dA + slot, dB_n, dC_n, sums, n, MANY, 1);
                    } else {
                        scan_again(p, &q, t, boundary + at_n, n, MANY, 0);
                        scan_back(p, &q, t, carry, dA + slot, dB_n, dC_n, sums, n, MANY, 0);
                    }
                }
                write_gradients(p, &q, t, dD + local * WIDE, dbias + local * WIDE, fast);
                if (k + 1 == s.end_tile || (k + 1) % a_group == 0) {
                    if (!p->constant_B) flush_sums(p, &q, s.block, sums.B, p->dB);
                    if (!p->constant_C) flush_sums(p, &q, s.block, sums.C, p->dC);
                }
            }
        }
        if (p->dh0) memcpy((vec *)p->dh0 + packed_row + s.first_tile * size, carries, bytes);
    }
    for (int64_t k = s.first_tile; k < s.end_tile; ++k) {
        set_tile(p, &q, k);
        FOR_WIDE {
            const int64_t to = s.row_group * p->d + q.channel + w * LANES;
            store(p->dD + to, dD[(k - s.first_tile) * WIDE + w], q.lanes[w]);
            store(p->dbias + to, dbias[(k - s.first_tile) * WIDE + w], q.lanes[w]);
        }
    }
    free(carries), free(dD), free(dbias), free(limits), free(t), free(sums.B), free(sums.C);
}

EXPORT void scan_forward_all(problem *p) { run_tasks(forward_task, p, p->row_groups * p->blocks, (int)p->threads); }
EXPORT void scan_backward_all(problem *p) { run_tasks(backward_task, p, p->row_groups * p->blocks, (int)p->threads); }
EXPORT int64_t scan_tile(void) { return TILE; }
EXPORT int64_t scan_chunk(void) { return CHUNK; }

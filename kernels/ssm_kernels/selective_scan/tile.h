/* A tile: TILE channels by CHUNK steps, in scan order; where it lies, and how it is read. */
typedef struct {
    int64_t batch, length, rows, d, n, groups, routes, row_groups, blocks; /* d channels and groups are those of all routes */
    int64_t rule, softplus, reverse, constant_B, constant_C, threads;
    const int64_t *row, *first_chunk;                            /* (batch, start, length) of each row; its first boundary */
    const int64_t *order;                                        /* [route][step], the token of each step; NULL: the step itself */
    const real *x, *dt, *z, *A, *B, *C, *D, *bias, *h0;          /* z, D, bias, h0 may be NULL */
    int64_t x_batch, x_step, dt_batch, dt_step, z_batch, z_step; /* strides in elements; channels are contiguous */
    int64_t B_batch, B_step, B_group, C_batch, C_step, C_group;
    int64_t x_route, dt_route;                                   /* strides between routes; 0 where they share x */
    int64_t y_batch, y_step;                                     /* of y, and of dx, ddt, dz */
    int64_t dx_route, ddt_route;
    real *y, *last, *boundaries;                                 /* last, boundaries may be NULL */
    const real *dy, *dlast;
    int64_t dy_batch, dy_step;
    real *dx, *ddt, *dz, *dA, *dB, *dC, *dD, *dbias, *dh0;
} problem;

typedef struct {
    vec dt[CHUNK][WIDE], x[CHUNK][WIDE], u[CHUNK][WIDE], y[CHUNK][WIDE], gate[CHUNK][WIDE];
    /* backward only */
    vec slope[CHUNK][WIDE], to_z[CHUNK][WIDE], gy[CHUNK][WIDE], s1[CHUNK][WIDE], s2[CHUNK][WIDE];
    vec a[CHUNK][MANY][PLANES * WIDE], h[CHUNK + 1][MANY][PLANES * WIDE];
} tile;

#define SUM_STRIDE (CHUNK + 1) /* odd: a power of two would put every nth row on the same cache sets */
typedef struct {
    vec (*B)[PLANES], (*C)[PLANES]; /* [n][SUM_STRIDE] lane-wise partial sums of dB and dC */
} partial;

typedef struct {
    int64_t batch, token[CHUNK], b_row[CHUNK], c_row[CHUNK]; /* of each step: its token, and where its B and C are */
    int steps, later;                                        /* later: not the first route, so shared outputs are added to */
    int64_t channel, width, group, index;
    int64_t own, route; /* the channel within its route */
    int lanes[WIDE];
} place;

INLINE int64_t tiles_a_group(const problem *p) { return (p->d / p->groups + TILE - 1) / TILE; }
INLINE int64_t tiles_a_route(const problem *p) { return tiles_a_group(p) * (p->groups / p->routes); }
INLINE const real *at(const real *base, int64_t batch, int64_t step, int64_t route, const place *q, int64_t i) {
    return base + q->batch * batch + q->token[i] * step + q->route * route + q->own;
}
#define AT(name, i) at(p->name, p->name##_batch, p->name##_step, 0, q, i)                         /* the routes share it */
#define AT_ROUTE(name, i) at(p->name, p->name##_batch, p->name##_step, p->name##_route, q, i)
#define GRADIENT(name, route, i) ((real *)at(p->name, p->y_batch, p->y_step, route, q, i))
/* Lanes of vector w; a constant where the tile is whole. */
#define LANES_OF(w) (whole ? LANES : q->lanes[w])
INLINE int is_whole(const place *q) { return q->width == TILE; }
static void set_tile(const problem *p, place *q, int64_t index) {
    int64_t a_group = p->d / p->groups, local = index % tiles_a_group(p) * TILE;
    q->index = index, q->group = index / tiles_a_group(p);
    q->channel = q->group * a_group + local;
    q->own = q->channel % (p->d / p->routes), q->route = q->channel / (p->d / p->routes);
    q->width = a_group - local < TILE ? a_group - local : TILE;
    FOR_WIDE q->lanes[w] = (int)(q->width - w * LANES < 0 ? 0 : q->width - w * LANES);
}
static void set_chunk(const problem *p, place *q, const int64_t *row, int64_t done, int64_t route) {
    const int64_t left = row[2] - done, first = p->reverse ? row[1] + left - 1 : row[1] + done, sign = p->reverse ? -1 : 1;
    q->batch = row[0], q->later = route > 0;
    q->steps = (int)(left < CHUNK ? left : CHUNK);
    for (int i = 0; i < q->steps; ++i) {
        const int64_t step = first + sign * i;
        q->token[i] = p->order ? p->order[route * p->length + step] : step;
        q->b_row[i] = q->token[i] * p->B_step, q->c_row[i] = q->token[i] * p->C_step;
    }
}
INLINE const real *b_row(const problem *p, const place *q, int64_t n) {
    return p->B + q->batch * p->B_batch + q->group * p->B_group + n * PLANES;
}
INLINE const real *c_row(const problem *p, const place *q, int64_t n) {
    return p->C + q->batch * p->C_batch + q->group * p->C_group + n * PLANES;
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

/* B or C of state n: constant per channel, or one number for all channels of the group. */
INLINE num projection(const real *base, int64_t constant, const real *row, const problem *p, const place *q, int64_t n,
                      int m, int w) {
    return constant ? get(packed(base, p, q, n), w) : spread(row + m * PLANES);
}

/* Rows are far apart, so the hardware does not see the next tile's inputs and outputs coming. They are fetched while this
 * tile's states are scanned, a few rows with each of them: all at once would wait for each other. */
#define CACHE_LINE ((int)(64 / sizeof(real)))
INLINE void prefetch_read(const real *row) {
    for (int k = 0; k < TILE; k += CACHE_LINE) __builtin_prefetch(row + k);
}
INLINE void prefetch_write(const real *row) {
    for (int k = 0; k < TILE; k += CACHE_LINE) __builtin_prefetch(row + k, 1);
}
/* The share of states n .. n + many - 1 in fetching tile q. */
INLINE void prefetch_share(const problem *p, const place *q, int64_t n, int many, int backward) {
    const int64_t end = q->steps * (n + many) / p->n;
    for (int64_t i = q->steps * n / p->n; i < end; ++i) {
        prefetch_read(AT_ROUTE(x, i)), prefetch_read(AT_ROUTE(dt, i));
        if (p->z) prefetch_read(AT(z, i));
        if (backward) {
            prefetch_read(AT(dy, i));
            prefetch_write(GRADIENT(dx, p->dx_route, i)), prefetch_write(GRADIENT(ddt, p->ddt_route, i));
            if (p->z) prefetch_write(GRADIENT(dz, 0, i));
        } else prefetch_write(AT(y, i));
    }
}

/* Reads the tile's inputs; returns whether the plain case holds. u is dt x then, else x. */
INLINE int read_inputs(const problem *p, const place *q, tile *t, real limit, int backward, int whole) {
    vec bias[WIDE], skip[WIDE], most = {0};
    FOR_WIDE bias[w] = p->bias ? load(p->bias + q->channel + w * LANES, LANES_OF(w)) : (vec){0};
    FOR_WIDE skip[w] = p->D ? load(p->D + q->channel + w * LANES, LANES_OF(w)) / READOUT : (vec){0};
    for (int i = 0; i < q->steps; ++i) {
        const real *dt_row = AT_ROUTE(dt, i), *x_row = AT_ROUTE(x, i);
        FOR_WIDE t->dt[i][w] = load(dt_row + w * LANES, LANES_OF(w)) + bias[w];
        FOR_WIDE t->x[i][w] = load(x_row + w * LANES, LANES_OF(w));
    }
    vec *dt = t->dt[0], *slope = t->slope[0];
    if (p->softplus) ALONG(q->steps * WIDE, softplus_side(dt + k, backward ? slope + k : NULL, side))
    else if (backward) for (int k = 0; k < q->steps * WIDE; ++k) slope[k] = splat(1);
    for (int i = 0; i < q->steps; ++i) FOR_WIDE {
        const vec x = t->x[i][w], dt = t->dt[i][w], size = vabs(dt);
        t->u[i][w] = dt * x, t->y[i][w] = skip[w] * x;
        most = choose(size <= most, most, size); /* a NaN becomes the largest */
        if (backward) t->s1[i][w] = t->s2[i][w] = (vec){0};
    }
    if (is_plain(p) && lane_max(most) * limit < EXP2_LIMIT) return 1;
    memcpy(t->u, t->x, sizeof t->u);
    return 0;
}

/* gate becomes z, then sigmoid(z). */
INLINE void read_gate(const problem *p, const place *q, tile *t, int whole) {
    for (int i = 0; i < q->steps; ++i) FOR_WIDE t->gate[i][w] = load(AT(z, i) + w * LANES, LANES_OF(w));
    vec *gate = t->gate[0];
    ALONG(q->steps * WIDE, sigmoid_side(gate + k, side))
}

/* The rows and tiles of task `index`; tasks are row group by channel block. A task does its tiles of every route, one route
 * after the other, because the routes add to the same outputs. Tile k of route i is tile i * tiles_a_route + k of all. */
typedef struct {
    int64_t row_group, block, first_row, end_row, first_tile, mine, tiles; /* mine: tiles of each route; tiles: of all */
} share;
static share share_of(const problem *p, int64_t index) {
    const int64_t a_route = tiles_a_route(p);
    share s = {.row_group = index / p->blocks, .block = index % p->blocks, .tiles = a_route * p->routes};
    s.first_row = p->rows * s.row_group / p->row_groups, s.end_row = p->rows * (s.row_group + 1) / p->row_groups;
    s.first_tile = a_route * s.block / p->blocks, s.mine = a_route * (s.block + 1) / p->blocks - s.first_tile;
    return s;
}
/* The largest decay of each of the task's tiles, [route][tile]. */
static real *limits_of(const problem *p, share s) {
    real *limits = aligned((size_t)(s.mine * p->routes) * sizeof(real));
    place q;
    for (int64_t k = 0; k < s.mine * p->routes; ++k) {
        set_tile(p, &q, k / s.mine * tiles_a_route(p) + s.first_tile + k % s.mine);
        limits[k] = largest_decay(p, &q);
    }
    return limits;
}

/* The forward pass. */
/* States n .. n + many - 1 are scanned together, so that they share the loads of dt, u and y. */
INLINE void scan_forward(const problem *p, const place *q, tile *t, vec *state, int64_t n, int many) {
    const real *B = b_row(p, q, n), *C = c_row(p, q, n);
    num A[MANY][WIDE], h[MANY][WIDE];
    FOR_MANY FOR_WIDE A[m][w] = get(packed(p->A, p, q, n + m), w), h[m][w] = get(state + m * PLANES * WIDE, w);
    for (int i = 0; i < q->steps; ++i) {
        const real *b = B + q->b_row[i], *c = C + q->c_row[i];
        FOR_WIDE {
            const vec dt = t->dt[i][w], u = t->u[i][w];
            vec y = t->y[i][w];
            FOR_MANY {
                h[m][w] = advance(p->rule, dt, u, A[m][w], h[m][w], projection(p->B, p->constant_B, b, p, q, n + m, m, w), NULL);
                y += re_of_product(projection(p->C, p->constant_C, c, p, q, n + m, m, w), h[m][w]);
            }
            t->y[i][w] = y;
        }
    }
    FOR_MANY FOR_WIDE put(state + m * PLANES * WIDE, w, h[m][w]);
}

INLINE void write_output(const problem *p, const place *q, tile *t, int whole) {
    if (p->z) read_gate(p, q, t, whole);
    for (int i = 0; i < q->steps; ++i) {
        real *y_row = (real *)AT(y, i);
        const real *z_row = p->z ? AT(z, i) : NULL;
        FOR_WIDE {
            vec y = READOUT * t->y[i][w];
            if (z_row) y *= load(z_row + w * LANES, LANES_OF(w)) * t->gate[i][w];
            if (q->later) y += load(y_row + w * LANES, LANES_OF(w));
            store(y_row + w * LANES, y, LANES_OF(w));
        }
    }
}

/* All states of a tile. Functions of their own, so that a tile's edge cases do not multiply with theirs. */
static __attribute__((noinline)) void forward_states(const problem *p, const place *q, const place *ahead, tile *t, vec *state,
                                                     int plain) {
    for (int64_t n = 0; n < p->n; n += MANY, state += MANY * PLANES * WIDE) {
        const int rest = n + MANY > p->n;
        prefetch_share(p, ahead, n, rest ? 1 : MANY, 0);
        if (plain) {
            if (rest) plain_forward(p, q, t, state, n, 1);
            else plain_forward(p, q, t, state, n, MANY);
        } else {
            if (rest) scan_forward(p, q, t, state, n, 1);
            else scan_forward(p, q, t, state, n, MANY);
        }
    }
}

/* One tile of one chunk. `limit`: the largest of its decays a unit of dt. */
INLINE void tile_forward(const problem *p, const place *q, const place *ahead, tile *t, vec *state, real limit, int whole) {
    forward_states(p, q, ahead, t, state, read_inputs(p, q, t, limit, 0, whole));
    write_output(p, q, t, whole);
}

static void forward_task(void *argument, int64_t index) {
    const problem *p = argument;
    const share s = share_of(p, index);
    const int64_t size = p->n * PLANES * WIDE; /* vectors of one tile's state */
    const size_t bytes = (size_t)(s.mine * size) * sizeof(vec);
    vec *states = aligned(bytes);
    real *limits = limits_of(p, s);
    tile *t = aligned(sizeof(tile));
    place q, ahead;
    for (int64_t r = s.first_row; r < s.end_row; ++r) for (int64_t route = 0; route < p->routes; ++route) {
        const int64_t *row = p->row + 3 * r, first = route * tiles_a_route(p) + s.first_tile;
        const int64_t packed_row = (r * s.tiles + first) * size;
        if (p->h0) memcpy(states, (const vec *)p->h0 + packed_row, bytes);
        else memset(states, 0, bytes);
        for (int64_t done = 0, chunk = 0; done < row[2]; done += CHUNK, ++chunk) {
            if (done == 0) set_chunk(p, &q, row, 0, route), set_tile(p, &q, first);
            if (p->boundaries)
                memcpy((vec *)p->boundaries + ((p->first_chunk[r] + chunk) * s.tiles + first) * size, states, bytes);
            for (int64_t k = 0; k < s.mine; ++k) {
                ahead = q;
                if (k + 1 < s.mine) set_tile(p, &ahead, first + k + 1);
                else if (done + CHUNK < row[2]) set_chunk(p, &ahead, row, done + CHUNK, route), set_tile(p, &ahead, first);
                if (is_whole(&q)) tile_forward(p, &q, &ahead, t, states + k * size, limits[route * s.mine + k], 1);
                else tile_forward(p, &q, &ahead, t, states + k * size, limits[route * s.mine + k], 0);
                q = ahead;
            }
        }
        if (p->last) memcpy((vec *)p->last + packed_row, states, bytes);
    }
    free(states), free(limits), free(t);
}

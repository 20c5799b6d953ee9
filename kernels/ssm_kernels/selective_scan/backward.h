/* The backward pass: a chunk's states again, then the adjoint recurrence. */
INLINE void scan_again(const problem *p, const place *q, tile *t, const vec *boundary, int64_t n, int many) {
    const real *B = b_row(p, q, n), *C = c_row(p, q, n);
    num A[MANY][WIDE], h[MANY][WIDE], a;
    FOR_MANY FOR_WIDE {
        A[m][w] = get(packed(p->A, p, q, n + m), w), h[m][w] = get(boundary + m * PLANES * WIDE, w);
        put(t->h[0][m], w, h[m][w]);
    }
    for (int i = 0; i < q->steps; ++i) {
        const real *b = B + q->b_row[i], *c = C + q->c_row[i];
        FOR_WIDE {
            const vec dt = t->dt[i][w], u = t->u[i][w];
            vec y = {0};
            FOR_MANY {
                h[m][w] = advance(p->rule, dt, u, A[m][w], h[m][w], projection(p->B, p->constant_B, b, p, q, n + m, m, w), &a);
                put(t->a[i][m], w, a), put(t->h[i + 1][m], w, h[m][w]);
                if (p->z) y += re_of_product(projection(p->C, p->constant_C, c, p, q, n + m, m, w), h[m][w]);
            }
            if (p->z) t->y[i][w] += y;
        }
    }
}

/* The adjoint recurrence. g = dLoss/dh[t]; carry brings a[t+1] g[t+1] in and takes a[0] g[0] out. */
INLINE void scan_back(const problem *p, const place *q, tile *t, vec *carry, vec *dA, vec *dB, vec *dC, partial sums,
                      int64_t n, int many) {
    const int64_t stride = PLANES * WIDE;
    const real *b_rows = b_row(p, q, n), *c_rows = c_row(p, q, n);
    num A[MANY][WIDE], g[MANY][WIDE], gA[MANY][WIDE], gB[MANY][WIDE], gC[MANY][WIDE], after[MANY][WIDE];
    FOR_MANY FOR_WIDE {
        A[m][w] = get(packed(p->A, p, q, n + m), w);
        g[m][w] = get(carry + m * stride, w), gA[m][w] = get(dA + m * stride, w);
        gB[m][w] = gC[m][w] = real_num((vec){0});
        after[m][w] = get(t->h[q->steps][m], w);
    }
    for (int i = q->steps - 1; i >= 0; --i) {
        const real *b = b_rows + q->b_row[i], *c = c_rows + q->c_row[i];
        num to_B[MANY], to_C[MANY];
        FOR_MANY to_B[m] = get_sum(sums.B[(n + m) * SUM_STRIDE + i]), to_C[m] = get_sum(sums.C[(n + m) * SUM_STRIDE + i]);
        FOR_WIDE {
            const vec gy = t->gy[i][w], u = t->u[i][w], dt = t->dt[i][w];
            vec s1 = t->s1[i][w], s2 = t->s2[i][w];
            FOR_MANY {
                num B = projection(p->B, p->constant_B, b, p, q, n + m, m, w);
                num C = projection(p->C, p->constant_C, c, p, q, n + m, m, w);
                num before = get(t->h[i][m], w), now = add(g[m][w], scale(gy, conj_of(C))), dB_now;
                step_rule s = coefficients(p->rule, dt, A[m][w], 1);
                num to_a = mul(now, conj_of(before)), to_w = scale(u, mul(now, conj_of(B)));
                dB_now = scale(u, mul(now, conj_of(s.w)));
                s1 += re_of_product(now, conj_of(mul(s.w, B)));
                s2 += re_of_product(to_a, conj_of(s.a_dt)) + re_of_product(to_w, conj_of(s.w_dt));
                gA[m][w] = add(gA[m][w], add(mul(to_a, conj_of(s.a_A)), mul(to_w, conj_of(s.w_A))));
                g[m][w] = mul(now, conj_of(s.a));
                if (p->constant_B) gB[m][w] = add(gB[m][w], dB_now);
                else to_B[m] = add(to_B[m], dB_now);
                num dC_now = scale(gy, conj_of(after[m][w]));
                if (p->constant_C) gC[m][w] = add(gC[m][w], dC_now);
                else to_C[m] = add(to_C[m], dC_now);
                after[m][w] = before;
            }
            t->s1[i][w] = s1, t->s2[i][w] = s2;
        }
        FOR_MANY put_sum(sums.B[(n + m) * SUM_STRIDE + i], to_B[m]), put_sum(sums.C[(n + m) * SUM_STRIDE + i], to_C[m]);
    }
    FOR_MANY FOR_WIDE {
        put(carry + m * stride, w, g[m][w]), put(dA + m * stride, w, gA[m][w]);
        if (p->constant_B) put(dB + m * stride, w, add(get(dB + m * stride, w), gB[m][w]));
        if (p->constant_C) put(dC + m * stride, w, add(get(dC + m * stride, w), gC[m][w]));
    }
}

/* gy = dLoss/d(C h + D x), and what dz is a multiple of. */
INLINE void read_gradient(const problem *p, const place *q, tile *t, int whole) {
    if (p->z) read_gate(p, q, t, whole);
    for (int i = 0; i < q->steps; ++i) {
        const real *dy_row = AT(dy, i), *z_row = p->z ? AT(z, i) : NULL;
        FOR_WIDE {
            vec gy = READOUT * load(dy_row + w * LANES, LANES_OF(w));
            if (z_row) {
                const vec z = load(z_row + w * LANES, LANES_OF(w)), gate = t->gate[i][w];
                t->to_z[i][w] = gy * gate * (1 + z * (1 - gate));
                gy *= z * gate;
            }
            t->gy[i][w] = gy;
        }
    }
}

/* Routes share x and z, so all but the first add to the gradients of these. */
INLINE void put_row(real *row, vec v, int lanes, int add) { store(row, add ? v + load(row, lanes) : v, lanes); }

INLINE void write_gradients(const problem *p, const place *q, tile *t, vec *dD, vec *dbias, int plain, int whole) {
    vec skip[WIDE];
    FOR_WIDE skip[w] = p->D ? load(p->D + q->channel + w * LANES, LANES_OF(w)) : (vec){0};
    for (int i = 0; i < q->steps; ++i) {
        FOR_WIDE {
            const int lanes = LANES_OF(w);
            vec x = t->x[i][w], gy = t->gy[i][w] / READOUT, s1 = t->s1[i][w];
            vec dx = skip[w] * gy + (plain ? t->dt[i][w] * s1 : s1);
            vec ddt = (plain ? x * s1 + t->s2[i][w] : t->s2[i][w]) * t->slope[i][w];
            put_row(GRADIENT(dx, p->dx_route, i) + w * LANES, dx, lanes, q->later && !p->dx_route);
            store(GRADIENT(ddt, p->ddt_route, i) + w * LANES, ddt, lanes);
            dD[w] += gy * x, dbias[w] += ddt;
            if (p->z) put_row(GRADIENT(dz, 0, i) + w * LANES, t->to_z[i][w] * t->y[i][w], lanes, q->later);
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
        const int64_t step = (block * p->batch + q->batch) * p->length + q->token[i];
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

static void *zeros(size_t bytes) { return memset(aligned(bytes), 0, bytes); }

/* States n .. n + many - 1 of a tile, both sweeps. */
INLINE void some_states(const problem *p, const place *q, tile *t, const vec *boundary, vec *carry, vec *dA, vec *dB, vec *dC,
                        partial sums, int64_t n, int many, int plain) {
    if (plain) {
        if (p->z) plain_again(p, q, t, boundary, sums, n, many, 1);
        else plain_again(p, q, t, boundary, sums, n, many, 0);
        plain_back(p, q, t, carry, dA, sums, n, many);
    } else {
        scan_again(p, q, t, boundary, n, many);
        scan_back(p, q, t, carry, dA, dB, dC, sums, n, many);
    }
}
static __attribute__((noinline)) void backward_states(const problem *p, const place *q, const place *ahead, tile *t,
                                                      const vec *boundary, vec *carry, vec *dA, vec *dB, vec *dC, partial sums, int plain) {
    for (int64_t n = 0; n < p->n; n += MANY) {
        const int64_t at_n = n * PLANES * WIDE;
        vec *dB_n = dB ? dB + at_n : NULL, *dC_n = dC ? dC + at_n : NULL;
        prefetch_share(p, ahead, n, n + MANY > p->n ? 1 : MANY, 1);
        if (n + MANY > p->n) some_states(p, q, t, boundary + at_n, carry + at_n, dA + at_n, dB_n, dC_n, sums, n, 1, plain);
        else some_states(p, q, t, boundary + at_n, carry + at_n, dA + at_n, dB_n, dC_n, sums, n, MANY, plain);
    }
}

/* One tile of one chunk; every pointer is at this tile's part. */
INLINE void tile_backward(const problem *p, const place *q, const place *ahead, tile *t, const vec *boundary, vec *carry, vec *dA, vec *dB, vec *dC,
                          partial sums, vec *dD, vec *dbias, real limit, int whole) {
    const int plain = read_inputs(p, q, t, limit, 1, whole);
    read_gradient(p, q, t, whole);
    backward_states(p, q, ahead, t, boundary, carry, dA, dB, dC, sums, plain);
    write_gradients(p, q, t, dD, dbias, plain, whole);
}

static void backward_task(void *argument, int64_t index) {
    const problem *p = argument;
    const share s = share_of(p, index);
    const int64_t size = p->n * PLANES * WIDE, a_group = tiles_a_group(p);
    const size_t bytes = (size_t)(s.mine * size) * sizeof(vec), sum_bytes = (size_t)(SUM_STRIDE * p->n * PLANES) * sizeof(vec);
    const size_t skip_bytes = (size_t)(s.mine * p->routes * WIDE) * sizeof(vec);
    vec *carries = aligned(bytes), *dD = zeros(skip_bytes), *dbias = zeros(skip_bytes);
    real *limits = limits_of(p, s);
    tile *t = aligned(sizeof(tile));
    partial sums = {zeros(sum_bytes), zeros(sum_bytes)};
    /* dA and the gradients of constant B and C: this row group's own packed copy, zeroed by the caller */
    const int64_t copy = s.row_group * s.tiles * size;
    vec *dA = (vec *)p->dA + copy, *dB = p->constant_B ? (vec *)p->dB + copy : NULL, *dC = p->constant_C ? (vec *)p->dC + copy : NULL;
    place q, ahead;
    for (int64_t r = s.first_row; r < s.end_row; ++r) for (int64_t route = 0; route < p->routes; ++route) {
        const int64_t *row = p->row + 3 * r, first = route * tiles_a_route(p) + s.first_tile;
        const int64_t packed_row = (r * s.tiles + first) * size;
        if (p->dlast) memcpy(carries, (const vec *)p->dlast + packed_row, bytes);
        else memset(carries, 0, bytes);
        const int64_t last = (row[2] + CHUNK - 1) / CHUNK - 1;
        for (int64_t chunk = last; chunk >= 0; --chunk) {
            if (chunk == last) set_chunk(p, &q, row, chunk * CHUNK, route), set_tile(p, &q, first);
            for (int64_t local = 0; local < s.mine; ++local) {
                const int64_t k = first + local, slot = route * s.mine + local;
                ahead = q;
                if (local + 1 < s.mine) set_tile(p, &ahead, k + 1);
                else if (chunk) set_chunk(p, &ahead, row, (chunk - 1) * CHUNK, route), set_tile(p, &ahead, first);
                const vec *boundary = (const vec *)p->boundaries + ((p->first_chunk[r] + chunk) * s.tiles + k) * size;
                vec *carry = carries + local * size, *dB_k = dB ? dB + k * size : NULL, *dC_k = dC ? dC + k * size : NULL;
                vec *dD_k = dD + slot * WIDE, *dbias_k = dbias + slot * WIDE;
                if (is_whole(&q)) tile_backward(p, &q, &ahead, t, boundary, carry, dA + k * size, dB_k, dC_k, sums, dD_k, dbias_k, limits[slot], 1);
                else tile_backward(p, &q, &ahead, t, boundary, carry, dA + k * size, dB_k, dC_k, sums, dD_k, dbias_k, limits[slot], 0);
                if (local + 1 == s.mine || (k + 1) % a_group == 0) {
                    if (!p->constant_B) flush_sums(p, &q, s.block, sums.B, p->dB);
                    if (!p->constant_C) flush_sums(p, &q, s.block, sums.C, p->dC);
                }
                q = ahead;
            }
        }
        if (p->dh0) memcpy((vec *)p->dh0 + packed_row, carries, bytes);
    }
    for (int64_t slot = 0; slot < s.mine * p->routes; ++slot) {
        set_tile(p, &q, slot / s.mine * tiles_a_route(p) + s.first_tile + slot % s.mine);
        FOR_WIDE {
            const int64_t to = s.row_group * p->d + q.channel + w * LANES;
            store(p->dD + to, dD[slot * WIDE + w], q.lanes[w]);
            store(p->dbias + to, dbias[slot * WIDE + w], q.lanes[w]);
        }
    }
    free(carries), free(dD), free(dbias), free(limits), free(t), free(sums.B), free(sums.C);
}

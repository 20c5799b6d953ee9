/* The plain case, which is Mamba's own: a real state, Euler's rule, B and C of every token, no decay that needs clamping.
 *
 * Decays come in a sweep of their own before the recurrence: they depend on nothing, so that the long chain of an
 * exponential overlaps with others; a processor's window is too short to see that from inside the recurrence. */

/* a[t] of all steps. */
INLINE void decays(const problem *p, const place *q, tile *t, int64_t n, int many) {
    vec A[MANY][WIDE];
    FOR_MANY FOR_WIDE A[m][w] = (real)1.4426950408889634 * packed(p->A, p, q, n + m)[w];
    for (int i = 0; i < q->steps; ++i) {
        vec a[MANY * WIDE];
        FOR_MANY FOR_WIDE a[m * WIDE + w] = product(t->dt[i][w], A[m][w]);
#pragma GCC unroll 8
        for (int k = 0; k < many * WIDE; k += SIDE) exp2_side(a + k, many * WIDE - k < SIDE ? many * WIDE - k : SIDE);
        FOR_MANY FOR_WIDE t->a[i][m][w] = a[m * WIDE + w];
    }
}

INLINE void plain_forward(const problem *p, const place *q, tile *t, vec *state, int64_t n, int many) {
    const real *b = b_row(p, q, n), *c = c_row(p, q, n);
    vec h[MANY][WIDE], B[MANY], C[MANY];
    decays(p, q, t, n, many);
    FOR_MANY FOR_WIDE h[m][w] = state[m * WIDE + w];
    for (int i = 0; i < q->steps; ++i) {
        FOR_MANY B[m] = splat(b[q->b_row[i] + m]), C[m] = splat(c[q->c_row[i] + m]);
        FOR_WIDE {
            const vec u = t->u[i][w];
            vec y = t->y[i][w];
            FOR_MANY {
                h[m][w] = t->a[i][m][w] * h[m][w] + product(u, B[m]);
                y += C[m] * h[m][w];
            }
            t->y[i][w] = y;
        }
    }
    FOR_MANY FOR_WIDE state[m * WIDE + w] = h[m][w];
}

/* Backward, first sweep: the states again; keeps a[t] and a[t] h[t-1], adds gy h to the partial sums of dC. */
INLINE void plain_again(const problem *p, const place *q, tile *t, const vec *boundary, partial sums, int64_t n, int many, int gated) {
    const real *b = b_row(p, q, n), *c = c_row(p, q, n);
    vec h[MANY][WIDE], B[MANY], C[MANY], to_C[MANY];
    decays(p, q, t, n, many);
    FOR_MANY FOR_WIDE h[m][w] = boundary[m * WIDE + w];
    for (int i = 0; i < q->steps; ++i) {
        FOR_MANY {
            B[m] = splat(b[q->b_row[i] + m]), C[m] = splat(c[q->c_row[i] + m]);
            to_C[m] = sums.C[(n + m) * SUM_STRIDE + i][0];
        }
        FOR_WIDE {
            const vec u = t->u[i][w], gy = t->gy[i][w];
            vec y = t->y[i][w];
            FOR_MANY {
                const vec kept = product(t->a[i][m][w], h[m][w]);
                t->h[i][m][w] = kept;
                h[m][w] = kept + u * B[m];
                to_C[m] += gy * h[m][w];
                if (gated) y += C[m] * h[m][w];
            }
            if (gated) t->y[i][w] = y;
        }
        FOR_MANY sums.C[(n + m) * SUM_STRIDE + i][0] = to_C[m];
    }
}

/* Second sweep, the adjoint recurrence: g = dLoss/dh[t]; carry brings a[t+1] g[t+1] in and takes a[0] g[0] out. */
INLINE void plain_back(const problem *p, const place *q, tile *t, vec *carry, vec *dA, partial sums, int64_t n, int many) {
    const real *b = b_row(p, q, n), *c = c_row(p, q, n);
    const vec *A = packed(p->A, p, q, n);
    vec g[MANY][WIDE], gA[MANY][WIDE], B[MANY], C[MANY], to_B[MANY];
    FOR_MANY FOR_WIDE g[m][w] = carry[m * WIDE + w], gA[m][w] = dA[m * WIDE + w];
    for (int i = q->steps - 1; i >= 0; --i) {
        FOR_MANY {
            B[m] = splat(b[q->b_row[i] + m]), C[m] = splat(c[q->c_row[i] + m]);
            to_B[m] = sums.B[(n + m) * SUM_STRIDE + i][0];
        }
        FOR_WIDE {
            const vec gy = t->gy[i][w], u = t->u[i][w], dt = t->dt[i][w];
            vec s1 = t->s1[i][w], s2 = t->s2[i][w];
            FOR_MANY {
                const vec now = g[m][w] + gy * C[m], to_log = product(now, t->h[i][m][w]);
                g[m][w] = now * t->a[i][m][w];
                to_B[m] += u * now;
                s1 += now * B[m];
                s2 += to_log * A[m * WIDE + w];
                gA[m][w] += dt * to_log;
            }
            t->s1[i][w] = s1, t->s2[i][w] = s2;
        }
        FOR_MANY sums.B[(n + m) * SUM_STRIDE + i][0] = to_B[m];
    }
    FOR_MANY FOR_WIDE carry[m * WIDE + w] = g[m][w], dA[m * WIDE + w] = gA[m][w];
}

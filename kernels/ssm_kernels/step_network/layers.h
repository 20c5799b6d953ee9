/* The instructions that are no linear maps. Those with a state take one vector of channels, c, at a time: its
 * coefficients are near when the next stream comes. */
static void layer_norm(const instruction *i, const float *x, float *y) {
    const int64_t whole = i->n / LANES * LANES; /* the last vector may hold less */
    vec sum = {0}, squares = {0};
    for (int64_t c = 0; c < whole; c += LANES) sum += get(x + c);
    if (whole < i->n) sum += load(x + whole, (int)(i->n - whole));
    const float mean = lane_sum(sum) / (float)i->n;
    for (int64_t c = 0; c < whole; c += LANES) {
        const vec d = get(x + c) - mean;
        squares += d * d;
    }
    if (whole < i->n) {
        vec d = load(x + whole, (int)(i->n - whole)) - mean;
        for (int l = (int)(i->n - whole); l < LANES; ++l) d[l] = 0;
        squares += d * d;
    }
    const float rate = 1 / sqrtf(lane_sum(squares) / (float)i->n + i->scale[0]), centre = mean - i->scale[1];
    const float *w = i->w;
    EACH(c, i->n) put(y + c, (get(x + c) - centre) * rate * get(w + c) + get(i->bias + c)); /* padding of w and bias: 0 */
}

/* h = a h + x, y = Re(C h) + D x, with gelu where asked; coefficients (block, k, 4, LANES), state (block, k, 2, LANES). */
static void diagonal(const instruction *i, int64_t c, const float *x, float *h, float *y) {
    const float *w = (const float *)i->w + c * i->k * 4;
    const vec u = get(x + c);
    vec even = u * get(i->bias + c), odd = {0};
    h += c * i->k * 2;
    for (int64_t j = 0; j < i->k; ++j, w += 4 * LANES, h += 2 * LANES) {
        const vec ar = get(w), ai = get(w + LANES), re = get(h), im = get(h + LANES);
        const vec nr = ar * re - ai * im + u, ni = ar * im + ai * re;
        put(h, nr), put(h + LANES, ni);
        even += get(w + 2 * LANES) * nr;
        odd += get(w + 3 * LANES) * ni;
    }
    put(y + c, i->activation == GELU ? gelu(even + odd) : even + odd);
}

/* The same with a low rank:  s = q . h + u q0 (a real number a channel),  h = e h + x - f s,  y = gelu(Re(C h) + D x).
 * coefficients (block, k, 8, LANES): e, f, q, C; scale (block, LANES): q0. */
static void low_rank(const instruction *i, int64_t c, const float *x, float *h, float *y) {
    const float *w = (const float *)i->w + c * i->k * 8;
    const vec u = get(x + c);
    vec s = u * get(i->scale + c), t = {0}, even = u * get(i->bias + c), odd = {0};
    h += c * i->k * 2;
    for (int64_t j = 0; j < i->k; ++j) {
        s += get(w + (8 * j + 4) * LANES) * get(h + 2 * j * LANES);
        t += get(w + (8 * j + 5) * LANES) * get(h + (2 * j + 1) * LANES);
    }
    s += t;
    for (int64_t j = 0; j < i->k; ++j, w += 8 * LANES, h += 2 * LANES) {
        const vec er = get(w), ei = get(w + LANES), re = get(h), im = get(h + LANES);
        const vec nr = er * re - ei * im + u - get(w + 2 * LANES) * s;
        const vec ni = er * im + ei * re - get(w + 3 * LANES) * s;
        put(h, nr), put(h + LANES, ni);
        even += get(w + 6 * LANES) * nr;
        odd += get(w + 7 * LANES) * ni;
    }
    put(y + c, gelu(even + odd));
}

/* y = silu(bias + sum_j w_j x_j) over the last k inputs, in place; the arena holds k - 1 of them, oldest first. */
static void short_conv(const instruction *i, int64_t c, float *x, float *window) {
    const float *w = i->w;
    const int64_t n = WHOLE(i->n), last = i->k - 1;
    const vec u = get(x + c);
    vec s = get(i->bias + c) + get(w + last * n + c) * u;
    for (int64_t j = 0; j < last; ++j) {
        s += get(w + j * n + c) * get(window + j * n + c);
        put(window + j * n + c, j + 1 < last ? get(window + (j + 1) * n + c) : u);
    }
    put(x + c, silu(s));
}

/* Mamba: h = exp(dt A) h + dt B x, y = (C . h + D x) silu(z); dt = softplus of what lies at `to`, where y goes.
 * `other` holds B and C (k each), `jump` says where z stands; log2(e) A is (block, k, LANES). */
static void selective(const instruction *i, int64_t c, float *scratch, float *h) {
    const float *A = (const float *)i->w + c * i->k, *B = scratch + i->other, *C = B + i->k;
    float *y = scratch + i->to + c;
    vec slope;
    const vec u = get(scratch + i->from + c), dt = softplus(get(y), &slope), driven = dt * u;
    vec sum = u * get(i->bias + c);
    h += c * i->k;
    for (int64_t j = 0; j < i->k; ++j, A += LANES, h += LANES) {
        const vec new = exp2_any(dt * get(A)) * get(h) + driven * B[j];
        put(h, new);
        sum += new * C[j];
    }
    put(y, sum * silu(get(scratch + i->jump + c)));
}
/* The same with k conjugate pairs: Re and Im of A (block, k, 2, LANES), of h, and of B and C (2 k each). */
static void selective_pairs(const instruction *i, int64_t c, float *scratch, float *h) {
    const float *A = (const float *)i->w + c * i->k * 2, *B = scratch + i->other, *C = B + 2 * i->k;
    float *y = scratch + i->to + c;
    vec slope, sine, cosine;
    const vec u = get(scratch + i->from + c), dt = softplus(get(y), &slope), driven = dt * u;
    vec sum = {0};
    h += c * i->k * 2;
    for (int64_t j = 0; j < i->k; ++j, A += 2 * LANES, h += 2 * LANES) {
        const vec size = exp2_any(dt * get(A)), re = get(h), im = get(h + LANES);
        sin_cos(dt * get(A + LANES), &sine, &cosine);
        const vec nr = size * (cosine * re - sine * im) + driven * B[j];
        const vec ni = size * (cosine * im + sine * re) + driven * B[i->k + j];
        put(h, nr), put(h + LANES, ni);
        sum += nr * C[j] - ni * C[i->k + j];
    }
    put(y, (2 * sum + u * get(i->bias + c)) * silu(get(scratch + i->jump + c)));
}

/* This token's share of the last whole group goes to `to`, the token joins the next group; the place in it is the same for
 * all streams. Returns whether that group is whole. */
static int pool(const instruction *i, const group *g) {
    const int64_t phase = g->registers[i->phase], at = phase * WHOLE(i->n);
    const size_t bytes = (size_t)WHOLE(i->n) * 4;
    STREAMS(b, g) {
        memcpy(scratch_of(g, b) + i->to, arena_of(g, b) + i->other + at, bytes);
        memcpy(arena_of(g, b) + i->state + at, scratch_of(g, b) + i->from, bytes);
        g->registers[b * g->integers + i->phase] = (phase + 1) % i->k;
    }
    return phase + 1 == i->k;
}

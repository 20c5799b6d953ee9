/* Discretisation: h = a h + w B x, with the derivatives of a and w (Mamba appendix; S4, eq. 3; DSS, eq. 4). */
enum { EULER, ZOH, BILINEAR };

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

/* One step of the recurrence; *decay gets a. */
INLINE num advance(int64_t rule, vec dt, vec u, num A, num h, num B, num *decay) {
    step_rule s = coefficients(rule, dt, A, 0);
    if (decay) *decay = s.a;
    return add(mul(s.a, h), scale(u, mul(s.w, B)));
}

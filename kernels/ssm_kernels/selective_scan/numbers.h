/* A number of the state: real, or complex as two vectors; how many of each make a tile. */
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
#endif
INLINE num inverse(num a) { return scale(1 / norm(a), conj_of(a)); }

#ifndef MANY
#define MANY 2 /* states that are scanned together, so that they share the loads of dt, u and y */
#endif
#define FOR_MANY _Pragma("GCC unroll 8") for (int m = 0; m < many; ++m)

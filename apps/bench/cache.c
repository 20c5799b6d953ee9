/* Reads the same bytes in the same order as a network's steps, and does nothing with them: the floor of stepping. */
#include "native_common.h"

EXPORT double cache_replay(const char *block, const int64_t *regions, int64_t count, int64_t tokens) {
    vec sum[4] = {0};
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t i = 0; i < count; ++i) {
            const int64_t *r = regions + 3 * i; /* offset, bytes, tokens that share a reading */
            if (t % r[2] != r[2] - 1) continue;
            const real *p = (const real *)(block + r[0]);
            const int64_t n = r[1] / (int64_t)sizeof(real);
            int64_t j = 0;
            for (; j + 4 * LANES <= n; j += 4 * LANES)
                for (int u = 0; u < 4; ++u) sum[u] += load(p + j + u * LANES, LANES);
            for (; j < n; j += LANES) sum[0] += load(p + j, (int)(n - j));
        }
    return lane_sum(sum[0] + sum[1] + sum[2] + sum[3]);
}

/* ---- drawing ---- */
static double uniform(uint64_t seed, uint64_t position) { /* splitmix64 at a counter: any draw from (seed, position) */
    uint64_t v = seed * 0xD1342543DE82EF95u + (position + 1) * 0x9E3779B97F4A7C15u;
    for (int round = 0; round < 2; ++round) {
        v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
        v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
        v ^= v >> 31;
    }
    return (double)(v >> 11) * 0x1p-53;
}

/* The largest threshold such that what is not below it weighs at least `wanted`, or counts so much. Reorders v. */
static float threshold(float *v, int64_t n, double wanted, int by_count) {
    double above = 0;
    float least = 0;
    int64_t low = 0, high = n; /* v[low..high) is undecided, all before is above the threshold */
    while (high > low) {
        const float pivot = v[low + (high - low) / 2];
        int64_t more = low, end = high;
        double weight = 0, equal = 0;
        for (int64_t j = low; j < end;) {
            const float x = v[j];
            if (x > pivot) weight += by_count ? 1 : x, v[j] = v[more], v[more++] = x, ++j;
            else if (x == pivot) equal += by_count ? 1 : x, ++j;
            else v[j] = v[--end], v[end] = x;
        }
        if (above + weight >= wanted) high = more;
        else if (above + weight + equal >= wanted) return pivot;
        else above += weight + equal, low = end, least = pivot;
    }
    return least; /* rounding: everything together weighs less */
}

static int64_t draw(const problem *p, const float *logits, float *chance, float *spare, uint64_t seed, int64_t position) {
    const int64_t n = p->levels;
    int64_t best = 0;
    for (int64_t j = 1; j < n; ++j)
        if (logits[j] > logits[best]) best = j;
    if (p->temperature <= 0) return best;
    const float top = logits[best], rate = (float)(1 / p->temperature);
    EACH(c, n) put(chance + c, exp_any((load(logits + c, (int)(n - c)) - top) * rate));
    float least = 0;
    if (p->top_k > 0 && p->top_k < n) {
        memcpy(spare, chance, (size_t)n * 4);
        least = threshold(spare, n, (double)p->top_k, 1);
    }
    double total = 0;
    for (int64_t j = 0; j < n; ++j) {
        chance[j] = chance[j] >= least ? chance[j] : 0;
        total += chance[j];
    }
    if (p->top_p < 1) {
        memcpy(spare, chance, (size_t)n * 4);
        least = threshold(spare, n, p->top_p * total, 0);
        total = 0;
        for (int64_t j = 0; j < n; ++j) {
            chance[j] = chance[j] >= least ? chance[j] : 0;
            total += chance[j];
        }
    }
    const double target = uniform(seed, (uint64_t)position) * total;
    double sum = 0;
    int64_t last = best;
    for (int64_t j = 0; j < n; ++j) {
        sum += chance[j];
        if (chance[j] > 0) last = j;
        if (sum > target) return j;
    }
    return last;
}

static float log_chance(const float *logits, int64_t n, int64_t level) {
    vec most = splat(logits[0]);
    for (int64_t j = 0; j < n; ++j)
        if (logits[j] > most[0]) most[0] = logits[j];
    const float top = most[0];
    double total = 0;
    EACH(c, n) {
        const vec e = exp_any(load(logits + c, (int)(n - c)) - top);
        for (int l = 0; l < LANES && c + l < n; ++l) total += e[l];
    }
    return logits[level] - top - (float)log(total);
}


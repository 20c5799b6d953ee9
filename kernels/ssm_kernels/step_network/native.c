/* One token at a time through a whole network: a small machine that runs a packed program.
 *
 * A program is a list of instructions over vectors of channels (norms, linear maps, recurrences) and one jump: POOL keeps
 * tokens until a group is complete and skips the slower tier until then. Weights are packed once, in the order in which
 * they are read, and shared; what a stream remembers lies in an arena of its own. Streams run side by side on threads, and
 * on one thread up to 8 at a time, instruction by instruction, so that a weight comes once from afar for all of them; a
 * stream's numbers do not depend on its neighbours. The next token is drawn here too: a Python call pays for many tokens.
 *
 * Vectors of channels are padded to whole vector registers. A linear map's rows are cut into blocks of R registers, and
 * for each block its columns follow one another:  w[block][k][R][LANES], as float32, as bfloat16 (columns k and k + 1 in
 * the halves of one 32-bit lane), or as int8 with a scale a row (k and k + 1 side by side).
 */
#include "machine.h"
#include "linear.h"
#include "layers.h"
#include "draw.h"

/* ---- the machine ---- */
#define EACH_VECTOR_AND_STREAM(c, b) EACH(c, i->n) STREAMS(b, g)
static void interpret(const instruction *program, const group *g) {
    for (const instruction *i = program;; ++i) {
#define S(b) scratch_of(g, b)
#define A(b) (arena_of(g, b) + i->state)
        switch (i->op) {
        case EMBED:
            STREAMS(b, g)
                memcpy(S(b) + i->to, (const float *)i->w + g->registers[b * g->integers] * WHOLE(i->n),
                    (size_t)WHOLE(i->n) * 4);
            break;
        case NORM: STREAMS(b, g) layer_norm(i, S(b) + i->from, S(b) + i->to); break;
        case LINEAR: linear(i, g); break;
        case S4D: EACH_VECTOR_AND_STREAM(c, b) diagonal(i, c, S(b) + i->from, A(b), S(b) + i->to); break;
        case S4: EACH_VECTOR_AND_STREAM(c, b) low_rank(i, c, S(b) + i->from, A(b), S(b) + i->to); break;
        case CONV: EACH_VECTOR_AND_STREAM(c, b) short_conv(i, c, S(b) + i->to, A(b)); break;
        case SCAN: EACH_VECTOR_AND_STREAM(c, b) selective(i, c, S(b), A(b)); break;
        case SCAN_PAIRS: EACH_VECTOR_AND_STREAM(c, b) selective_pairs(i, c, S(b), A(b)); break;
        case ADD: EACH_VECTOR_AND_STREAM(c, b) put(S(b) + i->to + c, get(S(b) + i->to + c) + get(S(b) + i->from + c)); break;
        case GATE:
            EACH_VECTOR_AND_STREAM(c, b) put(S(b) + i->to + c, get(S(b) + i->to + c) * silu(get(S(b) + i->from + c)));
            break;
        case COPY: STREAMS(b, g) memcpy(S(b) + i->to, S(b) + i->from, (size_t)WHOLE(i->n) * 4); break;
        case RECALL: EACH_VECTOR_AND_STREAM(c, b) put(S(b) + i->to + c, get(S(b) + i->to + c) + get(A(b) + c)); break;
        case POOL:
            if (!pool(i, g)) i = program + i->jump - 1;
            break;
        default: return;
        }
    }
}

/* One more token for each stream of a group, `first` the first of them; `spare` has room for two rows of chances. */
static void step(const problem *p, const group *g, int64_t first, int64_t t, float *spare) {
    interpret(p->program, g);
    STREAMS(b, g) {
        const int64_t s = first + b, at = s * p->count + t;
        const float *logits = scratch_of(g, b) + p->logits;
        int64_t *registers = g->registers + b * g->integers, next = registers[0];
        if (p->logits_out) memcpy(p->logits_out + at * p->levels, logits, (size_t)p->levels * 4);
        if (p->given) next = p->given[at];
        else if (p->sampled) next = draw(p, logits, spare, spare + WHOLE(p->levels), p->seeds[s], registers[1]);
        if (p->drawn) p->drawn[at] = next;
        if (p->log_likelihood) p->log_likelihood[at] = log_chance(logits, p->levels, next);
        registers[0] = next, ++registers[1];
    }
}

static void task(void *argument, int64_t index) {
    const problem *p = argument;
    const int64_t most = p->together > 1 ? p->together : 1, begin = index * most;
    const int64_t end = begin + most < p->streams ? begin + most : p->streams;
    int64_t inputs = 1; /* of the widest map */
    for (const instruction *i = p->program; i->op != END; ++i)
        if (i->op == LINEAR && i->k > inputs) inputs = i->k;
    float *scratch = aligned((size_t)(most * p->scratch + 2 * WHOLE(p->levels)) * 4);
    int16_t *whole = aligned((size_t)(most * inputs) * 2);
    memset(scratch, 0, (size_t)(most * p->scratch) * 4);
    for (int64_t first = begin, next; first < end; first = next) { /* streams at the same place in every pool */
        int64_t *registers = p->registers + first * p->integers;
        for (next = first + 1; next < end; ++next)
            if (memcmp(registers + 2, p->registers + next * p->integers + 2, (size_t)(p->integers - 2) * 8)) break;
        const group g = {next - first, p->arena, p->scratch, p->integers, p->arenas + first * p->arena, scratch, registers, whole};
        for (int64_t t = 0; t < p->count; ++t) step(p, &g, first, t, scratch + most * p->scratch);
    }
    free(whole);
    free(scratch);
}

EXPORT void step_network_run(problem *p) {
    if (p->together > MOST_TOGETHER) p->together = MOST_TOGETHER;
    const int64_t most = p->together > 1 ? p->together : 1;
    run_tasks(task, p, (p->streams + most - 1) / most, (int)p->threads);
}
EXPORT int64_t step_network_lanes(void) { return LANES; }

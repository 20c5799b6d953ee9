/* Selective scan on a CPU, forward and backward:  h = a h + w B x,  y = Re(C h) + D x,  out = y silu(z).
 *
 * Work is cut into tiles of TILE channels by CHUNK steps that live in the first-level cache: channels are vector lanes,
 * h and A stay in registers, B and C are broadcast loads. Loop order: row > chunk > tile > state n > step.
 * Forward saves h at every chunk's start; backward walks the chunks in reverse, computes a and h again into scratch, then
 * runs the adjoint recurrence. dB and dC are sums over channels: they are kept as lane-wise partial sums of a whole chunk
 * and folded across lanes once. Nothing of size (b, l, d, n) is ever stored, and every sum has a fixed order.
 *
 * "Packed" arrays (A, states, constant B and C) come as [tile][n][plane][TILE], plane = real, imaginary; lanes past a
 * group's last channel are zero. native.py makes them.
 */
#include "numbers.h"
#include "rule.h"
#include "tile.h"
#include "plain.h"
#include "forward.h"
#include "backward.h"

EXPORT void scan_forward_all(problem *p) { run_tasks(forward_task, p, p->row_groups * p->blocks, (int)p->threads); }
EXPORT void scan_backward_all(problem *p) { run_tasks(backward_task, p, p->row_groups * p->blocks, (int)p->threads); }
EXPORT int64_t scan_tile(void) { return TILE; }
EXPORT int64_t scan_chunk(void) { return CHUNK; }

"""Titans' linear memory: a matrix that is trained on the tokens, by gradient descent with momentum and forgetting.

    S[t] = eta[t] S[t-1] + theta[t] k[t] (v[t] - M' ^T k[t])^T,   M[t] = (1 - alpha[t]) M[t-1] + S[t]
    o[t] = M[t]^T q[t]

v - M'^T k is the gradient of half the squared error |M^T k - v|^2. It is taken at M', the memory at the start of a
batch of `batch` tokens, which makes a batch products of matrices; the batch is part of the model, and 1 is the exact
rule. With eta = alpha = 0 and batch 1 this is DeltaNet. The step is theta = (1 - eta) sigmoid / batch: a key that fills
a whole batch is then learned at most once, and nothing diverges.
Source: Behrouz et al. 2024, Titans: learning to memorize at test time, sec. 3.1-3.2.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, HeadTokens, Mask, Tokens
from ..mixer import Context
from ..state import State
from .matrix_memory import MatrixMemory, MatrixMemoryConfig, unit, wide_linear


@dataclass(frozen=True, kw_only=True)
class TitansConfig(MatrixMemoryConfig):
    """Options of Titans' linear memory."""

    batch: int = 16
    """Tokens whose gradients are taken at the same memory."""

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"TitansConfig: batch={self.batch}, expected at least 1")


class Titans(MatrixMemory):
    """The linear memory layer, (b, l, d_model) to (b, l, d_model).

    State: memory, momentum and start (b, h, n, p), start being the memory that gradients are taken at; pos (b,).

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    title = "Linear memory trained on the tokens (Titans)"
    operator = "loop over batches of tokens"
    selective = True
    Config = TitansConfig
    examples = ({"batch": 4}, {"num_heads": 2, "expand_v": 1.5, "batch": 1})
    gate = "silu"

    def __init__(self, d_model: int, config: TitansConfig | None = None):
        super().__init__(d_model, config)
        self.gates = nn.Linear(d_model, 3 * self.num_heads)  # alpha, eta, theta
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor([-4.0, 0.0, 0.0]).repeat_interleave(self.num_heads))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: memory, momentum, start (b, h, n, p); pos (b,), the tokens seen. Raises nothing."""
        shape = (self.num_heads, self.d_key, self.d_value)
        state = {
            name: self._zeros(batch, *shape, device=device, dtype=dtype) for name in ("memory", "momentum", "start")
        }
        return {**state, "pos": torch.zeros(batch, dtype=torch.int64, device=state["memory"].device)}

    def remember(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> tuple[HeadTokens, State]:
        """Train the memory and read it; see MatrixMemory.remember."""
        gates = wide_linear(self.gates, x).unflatten(-1, (3, -1)).unbind(-2)
        steps = (unit(q), unit(k), v, *(gate[..., None] for gate in gates))
        rows = ctx.rows
        if rows is not None:
            steps = tuple(rows.to_padded(t) for t in steps)
        lengths = torch.full_like(steps[0][:, 0, 0, 0], x.shape[1], dtype=torch.int64) if rows is None else rows.lengths
        before = self.init_state(len(lengths), device=x.device) if state is None else state
        o, new = self._train(steps, lengths, before)
        return (o if rows is None else rows.from_padded(o)), new

    def _train(self, steps: tuple[Tensor, ...], lengths: Tensor, before: State) -> tuple[HeadTokens, State]:
        """All batches of right-padded rows (r, l, h, ...), aligned to where batches of the model begin."""
        l, T = steps[0].shape[1], self.config.batch
        done = before["pos"] % T
        at = torch.arange(-(-(int(done.max()) + l) // T) * T, device=done.device) - done[:, None]
        exists = (at >= 0) & (at < lengths[:, None])
        place = at.clamp(0, l - 1)
        rows = torch.arange(len(done), device=done.device)[:, None]
        batches = [t[rows, place].unflatten(1, (-1, T)).unbind(1) for t in steps]
        memory, momentum, start = (before[name].to(steps[0].dtype) for name in ("memory", "momentum", "start"))
        outputs, last = [], (done + lengths) // T  # the batch that the next token falls into
        for i, (q, k, v, alpha, eta, theta, there) in enumerate(
            zip(*batches, exists.unflatten(1, (-1, T)).unbind(1), strict=True)
        ):
            begins = (done == 0) if i == 0 else torch.ones_like(done, dtype=torch.bool)
            begins = begins & (last >= i)
            start = torch.where(begins[:, None, None, None], memory, start)
            o, memory, momentum = self._batch((q, k, v), (alpha, eta, theta), there, (memory, momentum, start))
            outputs.append(o)
        finished = ((done + lengths) % T == 0)[:, None, None, None]
        new = {"memory": memory, "momentum": momentum, "start": torch.where(finished, memory, start)}
        o = torch.cat(outputs, 1)[rows, (torch.arange(l, device=done.device) + done[:, None])]
        return o, {**new, "pos": before["pos"] + lengths}

    def _batch(
        self, tokens: tuple[HeadTokens, ...], gates: tuple[Tensor, ...], there: Mask, state: tuple[Tensor, ...]
    ) -> tuple[HeadTokens, Tensor, Tensor]:
        """One batch of T tokens, whose gradients are all taken at `start`."""
        q, k, v = (t.transpose(1, 2) for t in tokens)  # (r, h, T, ...)
        there = there[:, None]
        alpha, eta, theta = (gate[..., 0].transpose(1, 2) for gate in gates)
        memory, momentum, start = state
        keep = torch.where(there, F.logsigmoid(-alpha), 0).cumsum(-1)
        carry = torch.where(there, F.logsigmoid(eta), 0).cumsum(-1)
        step = torch.where(there, eta.neg().sigmoid() * theta.sigmoid() / self.config.batch, 0)
        error = step[..., None] * (v - k @ start)
        kept, carried = _between(keep), _between(carry)
        through = kept * there[..., None, :]  # the memory takes the momentum in at tokens that exist
        weight = through @ carried
        moved = (through * carry.exp()[..., None, :]).sum(-1)
        o = (weight * (q @ k.mT)) @ error
        o = o + keep.exp()[..., None] * (q @ memory) + moved[..., None] * (q @ momentum)

        def total(pairs: Float[Tensor, "r h t t"]) -> Float[Tensor, "r h n p"]:
            return (k * pairs[..., -1, :, None]).mT @ error

        new = keep[..., -1, None, None].exp() * memory + moved[..., -1, None, None] * momentum + total(weight)
        return o.transpose(1, 2), new, carry[..., -1, None, None].exp() * momentum + total(carried)


def _between(logs: Float[Tensor, "*b t"]) -> Float[Tensor, "*b t t"]:
    """The product of all factors after token j up to token i, lower triangular, from running sums of logarithms."""
    difference = logs[..., :, None] - logs[..., None, :]
    t = logs.shape[-1]
    below = torch.ones(t, t, dtype=torch.bool, device=logs.device).tril()
    return torch.where(below, torch.where(below, difference, 0).exp(), 0)

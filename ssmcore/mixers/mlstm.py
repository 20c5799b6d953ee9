"""mLSTM, the matrix memory of xLSTM: linear attention with an exponential input gate and a forget gate, normalised.

    C[t] = f[t] C[t-1] + i[t] k[t] v[t]^T,  n[t] = f[t] n[t-1] + i[t] k[t],  i = e^(i_proj x),  f = sigmoid(f_proj x)
    o[t] = C[t]^T q[t] / max(|n[t] . q[t]|, 1)

Both are kept as multiples of e^top, top[t] = max(log f[t] + top[t-1], log i[t]), so that no gate overflows them.
Source: Beck et al. 2024, xLSTM: extended long short-term memory, sec. 2.3 and appendix A.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, HeadTokens, Tokens
from ..functional import associative_scan
from ..mixer import Context
from ..state import State
from .matrix_memory import MatrixMemory, MatrixMemoryConfig, Weights, wide_linear
from .rwkv4 import NOTHING


@dataclass(frozen=True, kw_only=True)
class MLstmConfig(MatrixMemoryConfig):
    """Options of the mLSTM."""

    input_bias: float = -10.0
    """Initial bias of the input gate's exponent."""
    forget_bias: tuple[float, float] = (3.0, 6.0)
    """Initial bias of the forget gate, in the first and the last head."""


class MLstm(MatrixMemory):
    """The mLSTM layer, (b, l, d_model) to (b, l, d_model). State: memory (b, h, n, p + 1), top (b, h).

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    title = "Matrix memory of xLSTM, exponential gates"
    operator = "chunked_scan, associative_scan"
    selective = True
    Config = MLstmConfig
    examples = ({"input_bias": 0.0}, {"num_heads": 2, "expand_v": 1.5, "chunk": 4})
    gate = "sigmoid"
    normalised = True

    def __init__(self, d_model: int, config: MLstmConfig | None = None):
        super().__init__(d_model, config)
        self.i_proj, self.f_proj = nn.Linear(d_model, self.num_heads), nn.Linear(d_model, self.num_heads)
        low, high = self.config.forget_bias
        with torch.no_grad():
            self.i_proj.bias.fill_(self.config.input_bias)
            self.f_proj.bias.copy_(torch.linspace(low, high, self.num_heads))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: memory (b, h, n, p + 1); top (b, h), at its least. Raises nothing."""
        state = super().init_state(batch, device=device, dtype=dtype)
        return {**state, "top": torch.full_like(state["memory"][..., 0, 0], NOTHING)}

    def weigh(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> Weights:
        """Both gates as shares of the largest weight so far; see MatrixMemory.weigh."""
        gate, forget = wide_linear(self.i_proj, x), F.logsigmoid(wide_linear(self.f_proj, x))
        count = x.shape[0] if ctx.rows is None else ctx.rows.count
        start = forget.new_full((count, self.num_heads), NOTHING) if state is None else state["top"].to(forget.dtype)
        if ctx.rows is None:
            tops = self.tops(gate, forget, start)
            top, before, last = tops[:, 1:], tops[:, :-1], tops[:, -1]
        else:
            rows = ctx.rows
            tops = self.tops(rows.to_padded(gate), rows.to_padded(forget), start)
            top, before = rows.from_padded(tops[:, 1:]), rows.from_padded(tops[:, :-1])
            last = tops.gather(1, rows.lengths[:, None, None].expand(-1, 1, self.num_heads))[:, 0]
        # What is nothing stays nothing; a difference of such exponents would overflow in sums.
        log_decay = (forget + before - top).clamp(min=-1e4)
        k = k * ((gate - top).exp() / math.sqrt(self.d_key))[..., None]
        return Weights(q, k, v, log_decay, floor=(-top).exp(), left={"top": last})

    def tops(
        self, gate: Float[Tensor, "r l h"], forget: Float[Tensor, "r l h"], start: Float[Tensor, "r h"]
    ) -> Float[Tensor, "r l1 h"]:
        """The largest exponents before the first token and after each one, (r, l + 1, h). Raises nothing."""
        fade = torch.cat([torch.zeros_like(start)[:, None], forget], 1)
        return associative_scan(_larger, (fade, torch.cat([start[:, None], gate], 1)))[1]


def _larger(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Stretches of (log decay, largest exponent) as one."""
    return earlier[0] + later[0], torch.maximum(earlier[1] + later[0], later[1])

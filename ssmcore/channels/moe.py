"""A mixture of experts: each token goes through the few of many networks that a router picks for it.

    p = softmax(router x),   y = sum of g_i expert_i(x) over the top-k of p

g is p itself (Switch, Jamba), p rescaled to sum to 1 (Mixtral), or sigmoid(router x) (BlackMamba). To keep the experts
busy, training adds a balance loss, n sum_i f_i P_i with f the share of tokens that picked expert i and P the mean of
p_i, which is 1 when all are equal; or it picks by a Sinkhorn-normalised router, which needs no loss.

The loss goes to the caller who asks: `mixer(x, shared={"losses": (losses := [])})` appends it, weighted, to the list.
Source: Fedus et al. 2022, Switch transformers, sec. 2; Jiang et al. 2024, Mixtral; Clark et al. 2022, Unified scaling
laws for routed language models, appendix B.2.1 (Sinkhorn); Anthony et al. 2024, BlackMamba.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from torch import Tensor, nn

from ..array_types import Float, Int, Tokens
from ..functional import at_least_float32
from ..mixer import Context
from ..state import State
from .mlp import PositionWise

Gate = Literal["softmax", "rescaled", "sigmoid"]
"""What an expert's output is weighted by: see the head of this file."""
Balance = Literal["loss", "sinkhorn", "none"]
"""What keeps the experts evenly busy in training."""


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Options of the mixture of experts."""

    num_experts: int = 8
    """Experts n."""
    top_k: int = 2
    """Experts that each token goes through."""
    gate: Gate = "softmax"
    """Weights of the chosen experts' outputs."""
    balance: Balance = "loss"
    """What keeps the experts evenly busy in training."""
    balance_weight: float = 0.01
    """Factor on the balance loss."""
    capacity: float | None = None
    """In training, tokens that an expert takes, in multiples of an even share; those beyond it, latest first, are
    dropped: they pass by on the residual stream. None takes all."""
    expert: str | Mapping[str, Any] = "glu"
    """A channel mixer, as `build_mixer` takes it."""

    def __post_init__(self):
        check_choice("MoeConfig", "gate", self.gate, get_args(Gate))
        check_choice("MoeConfig", "balance", self.balance, get_args(Balance))
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"MoeConfig: top_k={self.top_k} of num_experts={self.num_experts}, expected 1 to all")
        if self.capacity is not None and self.capacity <= 0:
            raise ValueError(f"MoeConfig: capacity={self.capacity}, expected more than 0")


class Moe(PositionWise):
    """A mixture of experts, (b, l, d) to (b, l, d). Its state is empty.

    With a capacity, or balanced by Sinkhorn, what a token gets in training depends on the tokens beside it; in
    evaluation it never does.

    Raises:
        ValueError: The expert is unknown, lets tokens see each other, or is a mixture itself.
    """

    Config = MoeConfig
    examples = (
        {"num_experts": 4},
        {"num_experts": 3, "top_k": 1, "gate": "sigmoid", "expert": {"name": "mlp", "expand": 2}},
    )

    def __init__(self, d_model: int, config: MoeConfig | None = None):
        super().__init__(d_model, config)
        from ..mixers import build_mixer  # that module registers this one's class

        self.router = nn.Linear(d_model, self.config.num_experts, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)
        experts = [build_mixer(self.config.expert, d_model) for _ in range(self.config.num_experts)]
        if not all(isinstance(expert, PositionWise) and not isinstance(expert, Moe) for expert in experts):
            raise ValueError(f"Moe: expert is {self.config.expert!r}, expected one that maps single tokens, as 'glu'")
        self.experts = nn.ModuleList(experts)
        self.residual_out = tuple(f"experts.{i}.{name}" for i, e in enumerate(experts) for name in e.residual_out)

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """Route and map x, (b, l, d) or packed; appends to ctx.shared["losses"] in training. See Mixer.mix."""
        flat = x.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(at_least_float32(flat).to(self.router.weight.dtype), self.router.weight)
            logits = at_least_float32(logits)
        chosen, weight = self.route(logits)
        if self.training and self.config.balance == "loss" and ctx.shared is not None and "losses" in ctx.shared:
            ctx.shared["losses"].append(self.config.balance_weight * balance_loss(logits.softmax(-1), chosen))
        y = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            assert isinstance(expert, PositionWise)
            token, place = (chosen == i).nonzero(as_tuple=True)
            if self.training and self.config.capacity is not None:
                most = math.ceil(self.config.capacity * chosen.numel() / len(self.experts))
                token, place = token[:most], place[:most]
            # An expert that nobody picked runs on no token, so that its gradient is zero and not absent.
            out = expert.map_channels(flat[token]) * weight[token, place, None].to(x.dtype)
            y = y.index_add(0, token, out.to(y.dtype))
        return y.view_as(x), {}

    def route(self, logits: Float[Tensor, "t n"]) -> tuple[Int[Tensor, "t k"], Float[Tensor, "t k"]]:
        """The experts of each token and the weights of their outputs, (t, k) each, from (t, n). Raises nothing."""
        c: MoeConfig = self.config
        scores = sinkhorn(logits.detach()) if self.training and c.balance == "sinkhorn" else logits
        chosen = scores.topk(c.top_k, -1).indices
        weight = (logits.sigmoid() if c.gate == "sigmoid" else logits.softmax(-1)).gather(-1, chosen)
        return chosen, weight / weight.sum(-1, keepdim=True) if c.gate == "rescaled" else weight


def balance_loss(p: Float[Tensor, "t n"], chosen: Int[Tensor, "t k"]) -> Float[Tensor, ""]:
    """n sum_i f_i P_i: how unevenly t tokens use n experts; 1 is even, n the worst.

    Args:
        p: The router's probabilities, shape (t, n).
        chosen: The experts of each token, shape (t, k).
    Returns:
        The loss, a scalar, differentiable in p.
    Source: Fedus et al. 2022, Switch transformers, eq. 4-6, for k experts a token.
    """
    n = p.shape[-1]
    share = torch.bincount(chosen.flatten(), minlength=n).to(p.dtype) / max(chosen.numel(), 1)
    return n * (share * p.mean(0)).sum()


def sinkhorn(logits: Float[Tensor, "t n"], rounds: int = 8) -> Float[Tensor, "t n"]:
    """e^logits, its rows and columns rescaled in turn so that every expert has the same sum; (t, n). Raises nothing."""
    log_p = logits - logits.amax()
    for _ in range(rounds):
        log_p = log_p - log_p.logsumexp(0, keepdim=True)
        log_p = log_p - log_p.logsumexp(1, keepdim=True)
    return log_p.exp()

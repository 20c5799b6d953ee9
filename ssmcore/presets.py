"""Published backbones of several mixers, each a pattern over Stack.

    create_backbone("jamba", 256)                 at a size for trying; the depth of one period of its pattern
    create_backbone("jamba", 256, periods=4)      the pattern, four times

A preset says which mixer stands where, and with which options that the paper fixes; widths come from d_model. What is
not one of Stack's layers (embeddings, heads, tied weights, the tokens of a modality) belongs to the domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .registry import resolve
from .stack import Stack


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pattern, and what stands around it."""

    pattern: str
    """One period of the layers, as Stack reads it."""
    title: str
    """What it is, in a few words."""
    source: str
    """Where it comes from."""
    mixers: Mapping[str, Any] = field(default_factory=dict)
    """What the names of the pattern stand for."""
    first: str = ""
    """Layers before the periods."""
    last: str = ""
    """Layers after them."""
    stack: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of Stack."""
    published: int | None = None
    """Periods of a published model, where the pattern is that of one size."""


MOE_SWITCH = {"name": "moe", "num_experts": 32, "top_k": 1, "expert": "mlp"}
WINDOW = {"name": "attention", "window": 2048}

BACKBONES: dict[str, Backbone] = {
    "h3_hybrid": Backbone(
        pattern="h3/mlp A/mlp h3/mlp*4",
        published=2,
        mixers={"A": {"name": "attention", "rope_base": None}},
        stack={"norm": "layer"},
        title="H3 with attention in the second layer of six",
        source="Fu et al. 2023, Hungry hungry hippos, sec. 5",
    ),
    "blackmamba": Backbone(
        pattern="mamba E",
        mixers={
            "E": {
                "name": "moe",
                "num_experts": 8,
                "top_k": 1,
                "gate": "sigmoid",
                "balance": "sinkhorn",
                "expert": "glu",
            }
        },
        title="Mamba and top-1 experts in turn, balanced by Sinkhorn",
        source="Anthony et al. 2024, BlackMamba: mixture of experts for state-space models, sec. 3",
    ),
    "moe_mamba": Backbone(
        pattern="mamba E",
        mixers={"E": MOE_SWITCH},
        title="Mamba and switch experts in turn",
        source="Pioro et al. 2024, MoE-Mamba: efficient selective state space models with mixture of experts, sec. 3",
    ),
    "jamba": Backbone(
        pattern="mamba/glu mamba/E mamba/glu mamba/E A/glu mamba/E mamba/glu mamba/E",
        published=4,
        mixers={
            "A": {"name": "attention", "rope_base": None},
            "E": {"name": "moe", "num_experts": 16, "top_k": 2},
        },
        title="Seven Mamba layers to one of attention, experts in every second layer",
        source="Lieber et al. 2024, Jamba: a hybrid Transformer-Mamba language model, sec. 3",
    ),
    "mambabyte": Backbone(
        pattern="mamba",
        title="Mamba on bytes",
        source="Wang et al. 2024, MambaByte: token-free selective state space model, sec. 3",
    ),
    "mambaformer": Backbone(
        first="mamba",
        pattern="A mamba",
        mixers={"A": {"name": "attention", "rope_base": None}},
        title="Mamba, then attention and Mamba in turn, without positions or channel mixers",
        source="Park et al. 2024, Can Mamba learn how to learn? sec. 4",
    ),
    "spade": Backbone(
        first="S/mlp",
        pattern="W/mlp",
        mixers={
            "S": {"name": "parallel", "mixers": ("s4", {"name": "attention", "window": 128}), "combine": "concat"},
            "W": {"name": "attention", "window": 128},
        },
        title="Window attention, with S4 beside it in the bottom layer",
        source="Zuo et al. 2022, Efficient long sequence modeling via state space augmented transformer, sec. 3",
    ),
    "hawk": Backbone(
        pattern="rglru/G",
        mixers={"G": {"name": "geglu", "expand": 3, "activation": "gelu_tanh", "bias": True}},
        title="Gated linear recurrences only",
        source="De et al. 2024, Griffin, sec. 2",
    ),
    "griffin": Backbone(
        pattern="rglru/G rglru/G W/G",
        mixers={
            "G": {"name": "geglu", "expand": 3, "activation": "gelu_tanh", "bias": True},
            "W": {"name": "attention", "window": 1024, "num_kv_heads": 1, "rope_fraction": 0.5},
        },
        title="Two gated linear recurrences to one layer of local attention",
        source="De et al. 2024, Griffin: mixing gated linear recurrences with local attention, sec. 2",
    ),
    "samba": Backbone(
        pattern="mamba/glu W/glu",
        mixers={"W": WINDOW},
        title="Mamba and sliding-window attention in turn",
        source="Ren et al. 2024, Samba: simple hybrid state space models, sec. 2",
    ),
    "nemotron_h": Backbone(
        first="(mamba2 F)*3 mamba2 A F",
        pattern="(mamba2 F)*4 mamba2 A F",
        last="(mamba2 F)*5",
        published=3,
        mixers={"F": "mlp", "A": {"name": "attention", "rope_base": None}},
        title="Mamba-2 and feed-forward sublayers, few layers of attention",
        source="NVIDIA 2025, Nemotron-H: a family of accurate and efficient hybrid Mamba-Transformer models, sec. 2",
    ),
    "simba": Backbone(
        pattern="mamba/einfft",
        mixers={"mamba": {"d_state": 64}},
        stack={"norm": "layer"},
        title="Mamba and the spectral channel mixer",
        source="Patro & Agneeswaran 2024, SiMBA: simplified Mamba-based architecture, sec. 3",
    ),
}


def list_backbones() -> list[str]:
    """The names of the presets, sorted. No shapes, raises nothing."""
    return sorted(BACKBONES)


def create_backbone(
    name: str, d_model: int, *, periods: int = 1, mixers: Mapping[str, Mapping[str, Any]] | None = None, **stack: Any
) -> Stack:
    """Build a published backbone.

    Args:
        name: See `list_backbones`.
        d_model: Channels of the tokens, d in (b, l, d).
        periods: How often the pattern is repeated.
        mixers: Further options for names of the pattern, on top of the preset's: {"E": {"num_experts": 4}}.
        **stack: Further arguments of Stack, on top of the preset's.
    Returns:
        The stack, initialised.
    Raises:
        ValueError: No such preset (with near misses), periods < 1, or as Stack.
    """
    preset = resolve(name, BACKBONES, "backbone")
    if periods < 1:
        raise ValueError(f"create_backbone: periods={periods}, expected at least 1")
    specs = {key: {"name": spec} if isinstance(spec, str) else dict(spec) for key, spec in preset.mixers.items()}
    for key, options in (mixers or {}).items():
        specs[key] = {**specs.get(key, {}), **options}
    pattern = f"{preset.first} ({preset.pattern})*{periods} {preset.last}".strip()
    return Stack(d_model, pattern, mixers=specs, **{**preset.stack, **stack})

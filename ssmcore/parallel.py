"""Several mixers side by side on the same tokens, as SPADE's bottom layer has S4 and window attention.

    create_mixer("parallel", 64, mixers=("s4", {"name": "attention", "window": 128}), combine="concat")

Unlike the wrappers for two directions and token orders this keeps time in order: it is causal, and has a state, where
all its mixers do. Its state holds one state a mixer, {"0": ..., "1": ...}.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .array_types import Tokens
from .blocks import LayerNorm
from .mixer import Context, Mixer
from .state import State
from .wrappers import Combine, Combiner


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Options of mixers side by side."""

    mixers: Sequence[str | Mapping[str, Any] | Callable[[int], Mixer]] = ("s4", "attention")
    """What is run, each as `build_mixer` takes it."""
    combine: Combine = "concat"
    """How the outputs become one."""
    norm: bool = True
    """Normalise each output before."""

    def __post_init__(self):
        if len(self.mixers) < 1:
            raise ValueError("ParallelConfig: mixers is empty, expected at least one")


class Parallel(Mixer):
    """Mixers on the same tokens, (b, l, d) to (b, l, d).

    Raises:
        ValueError: A mixer is unknown, or the way to combine.
    """

    Config = ParallelConfig
    examples = (
        {"mixers": ({"name": "s4d", "d_state": 4}, {"name": "attention", "window": 3})},
        {"mixers": ("gru", "mamba"), "combine": "sum", "norm": False},
    )

    def __init__(self, d_model: int, config: ParallelConfig | None = None):
        super().__init__(d_model, config)
        from .mixers import build_mixer  # that module registers this one's class

        c: ParallelConfig = self.config
        self.mixers = nn.ModuleList(build_mixer(spec, d_model) for spec in c.mixers)
        self.norms = nn.ModuleList(LayerNorm(d_model) if c.norm else nn.Identity() for _ in c.mixers)
        self.combiner = Combiner(c.combine, len(c.mixers), d_model)
        every = self._each()
        for flag in ("causal", "recurrent", "bounded_state", "takes_rows", "takes_dt"):
            setattr(self, flag, all(getattr(mixer, flag) for mixer in every))
        self.operator = ", ".join(mixer.operator for mixer in every)
        self.needs = frozenset().union(*(mixer.needs for mixer in every))
        if self.combiner.proj is not None:
            self.residual_out = ("combiner.proj.weight",)
        elif c.norm:
            self.residual_out = tuple(f"norms.{i}.{name}" for i in range(len(every)) for name in ("weight", "bias"))
        else:
            self.residual_out = tuple(f"mixers.{i}.{name}" for i, m in enumerate(every) for name in m.residual_out)

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Of every mixer; see Mixer.init_state. Raises Unsupported if one has none."""
        return {str(i): m.init_state(batch, device=device, dtype=dtype) for i, m in enumerate(self._each())}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """All mixers on x, (b, l, d) or packed; see Mixer.mix. Raises as the mixers do."""
        outputs, new = [], {}
        for i, (mixer, norm) in enumerate(zip(self._each(), self.norms, strict=True)):
            y, left = mixer.mix(x, None if state is None else state[str(i)], ctx)
            outputs.append(norm(y).to(x.dtype))
            new[str(i)] = left
        return self.combiner(outputs), None if any(left is None for left in new.values()) else new

    def _each(self) -> list[Mixer]:
        return [mixer for mixer in self.mixers if isinstance(mixer, Mixer)]

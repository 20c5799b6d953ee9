"""Everything but the numbers: what has to be written down to build a Network again. Plain data, kept as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..config import StreamConfig
from .linear_base import LinearBase
from .linear_ssm import LinearSSM
from .network import Network
from .stream_encoder import StreamEncoder
from .window import Sizes
from .window_encoder import WindowEncoder, start_at_zero
from .window_forecaster import NETWORKS, WindowConfig, build_network

StackConfig = StreamConfig | WindowConfig
STACKS: dict[str, type] = {"stream": StreamConfig, **{name: config for config, (name, _) in NETWORKS.items()}}


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """Of a Network."""

    sizes: Sizes
    poles: int
    """Number of poles of the linear base."""
    base_context: int | None
    """Values that the linear base may use; None for all."""
    output: dict[str, Any]
    """Name and arguments of the head, from `heads.describe_output`."""
    mixer: Any = None
    """Of the encoder, as a name or a dict; None for no encoder."""
    stack: StackConfig | None = None
    """Which encoder, and its sizes."""
    context_length: int = 0
    """Steps of a training window: what a window network sees; the time constant of a stream encoder's normalisation."""

    def build(self) -> Network:
        """A new network; its tensors are to be fitted or loaded.

        Raises:
            ValueError: The mixer, the stack or the output cannot be built so.
        """
        from ..heads import make_head  # GluonTS's torch package takes seconds to import

        head = make_head(self.output)
        tau, angles = torch.ones(self.poles, dtype=torch.float64), torch.zeros(self.poles, dtype=torch.float64)
        linear = LinearSSM(self.sizes.prediction_length, tau, angles, self.base_context)
        encoder = None
        if isinstance(self.stack, StreamConfig):
            encoder = StreamEncoder(self.sizes, head.width, self.mixer, self.context_length, self.stack)
        elif self.stack is not None:
            network = build_network(self.stack, self.sizes, head.width, self.mixer, self.context_length)
            encoder = WindowEncoder(start_at_zero(network))
        return Network(LinearBase(linear, self.sizes.known, self.sizes.channels), encoder, head, self.sizes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        kind = next((name for name, config in STACKS.items() if type(self.stack) is config), None)
        return {**asdict(self), "stack_kind": kind}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Blueprint":
        """From what `to_dict` gave."""
        data = dict(data)
        kind = data.pop("stack_kind")
        sizes = {**data.pop("sizes")}
        sizes["cardinalities"] = tuple(sizes["cardinalities"])
        stack = data.pop("stack")
        return cls(**data, sizes=Sizes(**sizes), stack=None if kind is None else STACKS[kind](**stack))

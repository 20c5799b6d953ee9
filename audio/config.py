"""What the audio models can be told. Plain dataclasses: importing this file imports no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

QuantizerKind = Literal["mu-law", "linear"]
Network = Literal["sashimi", "diffwave"]
"""The two kinds of model: one sample after another, or all samples at once out of noise."""


@dataclass(frozen=True, kw_only=True)
class SaShiMiConfig:
    """SaShiMi: state-space layers at several rates, over one quantised sample a step."""

    levels: int = 256
    """Values that a sample can take."""
    d_model: int = 64
    """Channels at the full rate."""
    pool: tuple[int, ...] = (4, 4)
    """Factor between the rates of neighbouring tiers, outermost first; one tier more than factors."""
    expand: int = 2
    """Factor between the channels of neighbouring tiers."""
    layers: int = 8
    """Layers of each stage; each tier has one stage, the outer ones of a U-Net have two."""
    tiers: tuple[str, ...] = ("s4d/mlp",)
    """One layer of each tier, outermost first, as the pattern of a Stack; the last holds for all further tiers."""
    mixers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the names in `tiers`, e.g. {"s4d": {"d_state": 64, "systems": 1}, "mlp": {"expand": 2}}."""
    form: Literal["decoder", "unet"] = "decoder"
    """decoder: layers in the centre and on the way up. unet: on the way down too, and a skip around every branch."""
    norm: Literal["layer", "scalar", "rms"] = "layer"
    """Before every branch. scalar is a layer norm with one scale and one shift, as upstream trained with."""
    dropout: float = 0.0
    """Rate on each branch's output."""
    labels: tuple[int, ...] = ()
    """Number of values of each label of a clip, e.g. (10, 6) for digit and speaker; () is unconditional."""

    def __post_init__(self):
        if self.levels < 2 or self.d_model < 1 or self.layers < 1 or self.expand < 1:
            raise ValueError(
                f"SaShiMiConfig: levels={self.levels}, d_model={self.d_model}, layers={self.layers}, "
                f"expand={self.expand}, expected levels of at least 2 and the others of at least 1"
            )
        if any(factor < 2 for factor in self.pool) or any(count < 1 for count in self.labels):
            raise ValueError(
                f"SaShiMiConfig: pool={self.pool}, labels={self.labels}, expected pooling factors of at least 2 and "
                "labels of at least 1 value"
            )
        if not 1 <= len(self.tiers) <= len(self.pool) + 1:
            raise ValueError(
                f"SaShiMiConfig: tiers has {len(self.tiers)} entries, expected 1 to {len(self.pool) + 1}, as pool has "
                f"{len(self.pool)} factors"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each tier, outermost first."""
        return tuple(self.d_model * self.expand**i for i in range(len(self.pool) + 1))

    def pattern(self, tier: int) -> str:
        """The pattern of one stage of a tier, 0 the outermost."""
        return f"({self.tiers[min(tier, len(self.tiers) - 1)]})*{self.layers}"


@dataclass(frozen=True, kw_only=True)
class DiffWaveConfig:
    """DiffWave with a SaShiMi U-Net: a waveform out of noise, all samples at once, in a few steps."""

    d_model: int = 64
    """Channels at the full rate."""
    pool: tuple[int, ...] = (4, 4)
    """Factor between the rates of neighbouring tiers."""
    expand: int = 2
    """Factor between the channels of neighbouring tiers."""
    layers: int = 6
    """Layers of each stage."""
    d_state: int = 64
    """State size of a channel, in real numbers."""
    mlp_expand: float = 2.0
    """Hidden channels of the MLPs, in multiples of their width."""
    d_step: int = 512
    """Channels of the embedding of the noise level."""
    steps: int = 200
    """Noise levels of training."""
    beta_min: float = 1e-4
    """Variance of the noise that the first step adds."""
    beta_max: float = 0.02
    """Variance of the noise that the last step adds; even steps between."""
    labels: tuple[int, ...] = ()
    """Number of values of each label of a clip; () is unconditional."""

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.beta_min <= self.beta_max < 1:
            raise ValueError(
                f"DiffWaveConfig: steps={self.steps}, beta_min={self.beta_min}, beta_max={self.beta_max}, expected at "
                "least one step and 0 < beta_min <= beta_max < 1"
            )

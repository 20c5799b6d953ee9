"""Every mixer by name. A new mixer is one file here and one line in MIXERS.

create_mixer("mamba", 64, d_state=8)
build_mixer({"name": "mamba", "d_state": 8}, 64)         the same, from plain data
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..channels import CHANNEL_MIXERS
from ..mixer import Mixer, config_of
from ..parallel import Parallel
from ..registry import resolve
from ..wrappers import Bidirectional, ScanOrder
from .attention import Attention
from .deltanet import DeltaNet
from .dss import Dss
from .gated_deltanet import GatedDeltaNet
from .gla import Gla
from .grid_mamba import GridMamba
from .gru import Gru
from .gss import Gss
from .h3 import H3
from .hgrn import Hgrn
from .hgrn2 import Hgrn2
from .hippo_memory import HippoMemory
from .hyena import Hyena
from .kda import Kda
from .ldstack import LdStack
from .liquid_s4 import LiquidS4
from .long_conv import LongConv
from .lru import Lru
from .lssl import Lssl
from .lstm import Lstm
from .mamba import Mamba
from .mamba2 import Mamba2
from .mamba3 import Mamba3
from .mamba_s4 import MambaS4
from .mega import Mega
from .mlstm import MLstm
from .performer import Performer
from .retnet import RetNet
from .rglru import RgLru
from .rnn import Rnn
from .routed_mamba import RoutedMamba
from .rwkv4 import Rwkv4
from .rwkv6 import Rwkv6
from .rwkv7 import Rwkv7
from .s4 import S4
from .s4d import S4D
from .s4nd import S4ND
from .s5 import S5
from .sgconv import SgConv
from .titans import Titans
from .tnn import Tnn

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "deltanet": DeltaNet,
    "dss": Dss,
    "gated_deltanet": GatedDeltaNet,
    "gla": Gla,
    "grid_mamba": GridMamba,
    "gru": Gru,
    "gss": Gss,
    "h3": H3,
    "hgrn": Hgrn,
    "hgrn2": Hgrn2,
    "hippo": HippoMemory,
    "hyena": Hyena,
    "kda": Kda,
    "ldstack": LdStack,
    "liquid_s4": LiquidS4,
    "long_conv": LongConv,
    "lru": Lru,
    "lssl": Lssl,
    "lstm": Lstm,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "mamba3": Mamba3,
    "mamba_s4": MambaS4,
    "mega": Mega,
    "mlstm": MLstm,
    "performer": Performer,
    "retnet": RetNet,
    "rglru": RgLru,
    "rnn": Rnn,
    "routed_mamba": RoutedMamba,
    "rwkv4": Rwkv4,
    "rwkv6": Rwkv6,
    "rwkv7": Rwkv7,
    "s4": S4,
    "s4d": S4D,
    "s4nd": S4ND,
    "s5": S5,
    "sgconv": SgConv,
    "titans": Titans,
    "tnn": Tnn,
}
WRAPPERS: dict[str, type[Mixer]] = {"bidirectional": Bidirectional, "scan_order": ScanOrder, "parallel": Parallel}

MixerSpec: TypeAlias = str | Mapping[str, Any] | Callable[[int], Mixer]
"""A registered name; a dict with that name under "name" and options beside it; or a function of d_model."""


def registered_mixers() -> dict[str, type[Mixer]]:
    """All that a name can stand for: sequence mixers, channel mixers and wrappers. No shapes, raises nothing."""
    return {**MIXERS, **CHANNEL_MIXERS, **WRAPPERS}


def list_mixers() -> list[str]:
    """The names of the sequence mixers, sorted. No shapes, raises nothing."""
    return sorted(MIXERS)


def create_mixer(name: str, d_model: int, **options: Any) -> Mixer:
    """Build a mixer by its name.

    Args:
        name: See `list_mixers`; channel mixers (`ssmcore.channels`) and wrappers are built too.
        d_model: Channels of the tokens, d in (b, l, d).
        **options: Fields of the mixer's Config.
    Returns:
        The mixer, initialised.
    Raises:
        ValueError: No such mixer or option (with near misses), or a value it does not take.
    """
    kind = resolve(name, registered_mixers(), "mixer")
    return kind(d_model, config_of(kind, options))


def build_mixer(spec: MixerSpec, d_model: int) -> Mixer:
    """Build a mixer from a specification that may come from a file.

    Args:
        spec: A name; a dict of "name" and options; or a function of d_model that returns a mixer.
        d_model: Channels of the tokens, d in (b, l, d).
    Returns:
        The mixer, initialised.
    Raises:
        ValueError: As `create_mixer`; or the dict has no "name", or the function returned something else.
    """
    if isinstance(spec, str):
        return create_mixer(spec, d_model)
    if isinstance(spec, Mapping):
        if "name" not in spec:
            raise ValueError(f"build_mixer: {dict(spec)} has no 'name'")
        options = {str(key): value for key, value in spec.items() if key != "name"}
        return create_mixer(spec["name"], d_model, **options)
    mixer = spec(d_model)
    if not isinstance(mixer, Mixer) or mixer.d_model != d_model:
        raise ValueError(f"build_mixer: {spec} made {mixer!r:.80}, expected a Mixer of d_model={d_model}")
    return mixer

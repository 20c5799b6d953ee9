"""The published forms of SaShiMi by name; sizes count embedding and head. Imports no torch.

from audio import SaShiMi, preset
model = SaShiMi(preset("sashimi"))                       4.76M
model = SaShiMi(preset("sashimi", labels=(10, 6)))       any field replaced
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .config import SaShiMiConfig

MLP = {"expand": 2.0}


def _s4(name: str, layers: int = 8, **options: Any) -> SaShiMiConfig:
    """State-space layers and MLPs in turn, at three rates."""
    chosen = {"d_state": 64, "systems": None, **({"learn_input": True} if name == "s4d" else {}), **options}
    return SaShiMiConfig(layers=layers, tiers=(f"{name}/mlp",), mixers={name: chosen, "mlp": MLP})


def sashimi_2() -> SaShiMiConfig:
    """The SaShiMi paper's small form: 2 layers, tied S4, no gate. 1.29M; YouTubeMix 1.446 bits (published)."""
    return _s4("s4", 2, systems=1, out="linear")


def sashimi_4() -> SaShiMiConfig:
    """4 layers, tied S4, no gate. 2.22M."""
    return _s4("s4", 4, systems=1, out="linear")


def sashimi_6() -> SaShiMiConfig:
    """6 layers, tied S4, no gate. 3.14M."""
    return _s4("s4", 6, systems=1, out="linear")


def sashimi_8() -> SaShiMiConfig:
    """The SaShiMi paper's form: 8 layers, tied S4, no gate. 4.07M; YouTubeMix 1.294 bits (published, 4.05M)."""
    return _s4("s4", systems=1, out="linear")


def sashimi() -> SaShiMiConfig:
    """The form that upstream's code trains: 8 layers, tied S4, gated. 4.76M."""
    return _s4("s4", systems=1)


def sashimi_untied() -> SaShiMiConfig:
    """`sashimi` with poles of each channel's own. 5.45M."""
    return _s4("s4")


def sashimi_s4d() -> SaShiMiConfig:
    """`sashimi` with S4D-Lin for S4. 4.76M. Quicker, and more exact in float32."""
    return _s4("s4d", systems=1)


def sashimi_s4d_untied() -> SaShiMiConfig:
    """`sashimi_s4d` with poles of each channel's own. 5.22M."""
    return _s4("s4d")


def sashimi_unet() -> SaShiMiConfig:
    """The U-Net form, tied S4. 5.87M; SC09 1.873 bits (published, 5.8M)."""
    return replace(sashimi(), form="unet")


def sashimi_unet_untied() -> SaShiMiConfig:
    """The U-Net form with poles of each channel's own, as upstream released it. 6.84M."""
    return replace(sashimi_untied(), form="unet")


def sashimi_s4d_unet() -> SaShiMiConfig:
    """The U-Net form with tied S4D-Lin. 5.86M."""
    return replace(sashimi_s4d(), form="unet")


def _mamba(d_model: int, layers: int, pool: tuple[int, ...], tiers: tuple[str, ...], **mixers: Any) -> SaShiMiConfig:
    """The Mamba paper's U-Net: a Mamba block where SaShiMi has a pair of S4 and MLP."""
    return SaShiMiConfig(d_model=d_model, layers=layers, pool=pool, tiers=tiers, mixers=mixers, form="unet")


def mamba_sc09() -> SaShiMiConfig:
    """The Mamba paper's 6.1M form for SC09, real poles; 6.26M here, as its code was not released. 1.852 bits there."""
    return _mamba(64, 8, (4, 4), ("mamba",))


def mamba_sc09_large() -> SaShiMiConfig:
    """The Mamba paper's 24.3M form for SC09; 24.87M here. 1.860 bits there, and its best samples."""
    return _mamba(96, 15, (4, 4), ("mamba",))


def mamba_youtubemix() -> SaShiMiConfig:
    """The Mamba paper's form for long recordings (3.5M; 3.56M here): pooling by 16, complex poles."""
    return _mamba(64, 3, (16, 16), ("mamba",), mamba={"poles": "complex"})


def s4d_mamba() -> SaShiMiConfig:
    """S4D and MLP in the outer tiers, Mamba in the centre (Mamba paper, table 5, third row)."""
    s4d = {"d_state": 64, "learn_input": True, "systems": 1}
    return _mamba(64, 8, (4, 4), ("s4d/mlp", "s4d/mlp", "mamba"), s4d=s4d, mlp=MLP)


def mamba_s4_mamba() -> SaShiMiConfig:
    """Mamba-S4 (Mamba's block without selection) in the outer tiers, Mamba in the centre; see appendix E.4 there."""
    return _mamba(64, 8, (4, 4), ("mamba_s4", "mamba_s4", "mamba"))


def s4d_attention() -> SaShiMiConfig:
    """S4D and MLP in the outer tiers, attention over 256 tokens (4,096 samples) and MLP in the centre."""
    s4d = {"d_state": 64, "learn_input": True, "systems": 1}
    tiers = ("s4d/mlp", "s4d/mlp", "attention/mlp")
    return _mamba(64, 8, (4, 4), tiers, s4d=s4d, mlp=MLP, attention={"window": 256})


def fsdd_small() -> SaShiMiConfig:
    """A small form for spoken digits at 8 kHz and for quick starts: 2 layers of S4D at 32 channels. 0.4M."""
    s4d = {"d_state": 32, "learn_input": True}
    return SaShiMiConfig(d_model=32, layers=2, tiers=("s4d/mlp",), mixers={"s4d": s4d, "mlp": MLP})


PRESETS: dict[str, Callable[[], SaShiMiConfig]] = {
    "sashimi_2": sashimi_2,
    "sashimi_4": sashimi_4,
    "sashimi_6": sashimi_6,
    "sashimi_8": sashimi_8,
    "sashimi": sashimi,
    "sashimi_untied": sashimi_untied,
    "sashimi_s4d": sashimi_s4d,
    "sashimi_s4d_untied": sashimi_s4d_untied,
    "sashimi_unet": sashimi_unet,
    "sashimi_unet_untied": sashimi_unet_untied,
    "sashimi_s4d_unet": sashimi_s4d_unet,
    "mamba_sc09": mamba_sc09,
    "mamba_sc09_large": mamba_sc09_large,
    "mamba_youtubemix": mamba_youtubemix,
    "s4d_mamba": s4d_mamba,
    "mamba_s4_mamba": mamba_s4_mamba,
    "s4d_attention": s4d_attention,
    "fsdd_small": fsdd_small,
}


def preset(name: str, **changes: Any) -> SaShiMiConfig:
    """A published configuration, with fields replaced.

    Args:
        name: A key of PRESETS.
        **changes: Fields of SaShiMiConfig.
    Raises:
        ValueError: No such preset (with near misses).
        TypeError: No such field.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise ValueError(f"unknown preset {name!r}{hint} Known: {', '.join(PRESETS)}")
    return replace(PRESETS[name](), **changes)

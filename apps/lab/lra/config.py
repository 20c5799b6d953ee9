"""What `python -m apps.lab lra` can be told, and the published settings. Importing this file imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ssmcore.registry import resolve

TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")


@dataclass(frozen=True, kw_only=True)
class LraConfig:
    """Train a sequence classifier on a task of Long Range Arena, and score it on the test part."""

    task: tuple[str, ...] = ()
    """Which task: listops, text, retrieval, image, pathfinder or pathx."""
    data_dir: str | None = None
    """Local copy in its original layout; without, listops, pathfinder and pathx are drawn into runs/lra-data."""
    drawn: tuple[int, ...] = (96000, 2000, 2000)
    """Where data are drawn: how many of listops' parts; pathfinder draws their sum and splits it 8 : 1 : 1."""
    preset: str = "s4"
    """Published settings: s4, s4d or s5; or small, for two cores."""
    mixer: str | None = None
    """Registered mixer; this and what follows: none takes the preset's. A causal one is run in both directions."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the mixer, on top of the preset's where it is the preset's own."""
    d_model: int | None = None
    """Width."""
    num_layers: int | None = None
    """Layers."""
    norm: str | None = None
    """Norms: batch, layer or rms."""
    placement: Literal["pre", "post"] | None = None
    """Where they stand."""
    dropout: float | None = None
    """Rate in each branch."""
    batch_size: int | None = None
    """Sequences a batch."""
    epochs: int | None = None
    """Passes over the training part."""
    warmup: float | None = None
    """Part of all steps in which the learning rate rises; then it falls along a cosine."""
    lr: float | None = None
    """Largest learning rate."""
    weight_decay: float | None = None
    """Of the parameters that decay."""
    length: int | None = None
    """Tokens of a text at most; longer ones are cut."""
    size: Literal[32, 64, 128, 256] | None = None
    """Height and width of Pathfinder's images: 32 for pathfinder, 128 for pathx if none is given."""
    limit: int | None = None
    """Use only so many sequences of each part, to try things."""
    seed: int = 0
    """Of the weights, the order, the splits and the draws."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    precision: str = "32-true"
    """Lightning's precision."""
    output: str = "runs/lra"
    """Folder in which the run folder is made."""
    resume: str | None = None
    """Run folder of an interrupted run, to go on with."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A model and its training."""

    mixer: str = "s4"
    """Registered name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the mixer."""
    d_model: int = 256
    """Width."""
    num_layers: int = 6
    """Layers."""
    norm: str = "batch"
    """Norms."""
    placement: Literal["pre", "post"] = "pre"
    """Where they stand."""
    dropout: float = 0.0
    """Rate in each branch."""
    batch_size: int = 32
    """Sequences a batch."""
    epochs: int = 40
    """Passes over the training part."""
    warmup: float = 0.1
    """Part of all steps in which the learning rate rises."""
    lr: float = 0.01
    """Largest learning rate."""
    weight_decay: float = 0.05
    """Of the parameters that decay."""
    length: int = 2048
    """Tokens at most."""


def settings(config: LraConfig) -> Settings:
    """What a run is trained with: the preset's settings of its task, and what the config says otherwise.

    Args:
        config: The run's. No shapes.
    Raises:
        ValueError: There is not one task, or it or the preset is unknown.
    """
    if len(config.task) != 1:
        raise ValueError(f"lra: expected one task, got {' '.join(config.task) or 'none'}")
    name = config.task[0]
    resolve(name, dict.fromkeys(TASKS), "task")
    found = resolve(config.preset, PRESETS, "preset")[name]
    said = {f.name: getattr(config, f.name) for f in fields(Settings) if f.name != "options"}
    told = {key: value for key, value in said.items() if value is not None}
    own = {} if told.get("mixer", found.mixer) != found.mixer else dict(found.options)
    return replace(found, **told, options={**own, **config.options})


def _s4(n: int, systems: int | None, own_lr: float, dt_scale: float | None, dt_min: float = 1e-3) -> dict[str, Any]:
    return {
        "two_sided": True,
        "d_state": n,
        "systems": systems,
        "lr_scale": own_lr,
        "dt_lr_scale": dt_scale,
        "dt_min": dt_min,
    }


# Gu et al. 2022 (S4), the released configurations of version 4 (state-spaces/s4, configs/experiment/lra).
# The state space learns at 0.001; its step does so on Image and Pathfinder, else at the rate of everything.
S4 = {
    "listops": Settings(options=_s4(4, 1, 0.1, 1.0), placement="post", batch_size=32, epochs=40),
    "text": Settings(options=_s4(4, 1, 0.1, 1.0), batch_size=16, epochs=32, length=4096),
    "retrieval": Settings(options=_s4(4, 1, 0.1, 1.0), batch_size=64, epochs=20, length=4000),
    "image": Settings(
        options=_s4(64, 1, 0.1, None), d_model=512, placement="post", dropout=0.1, batch_size=50, epochs=200
    ),
    "pathfinder": Settings(options=_s4(64, None, 0.25, None), lr=0.004, batch_size=64, epochs=200),
    "pathx": Settings(options=_s4(64, None, 1.0, None, 1e-4), lr=0.001, batch_size=16, epochs=50),
}
# Gu et al. 2022 (S4D), table 7: S4's settings with diagonal systems that start at LegS.
S4D = {
    name: replace(
        found,
        mixer="s4d",
        options={key: value for key, value in found.options.items() if key != "dt_lr_scale"} | {"init": "legs"},
    )
    for name, found in S4.items()
}


def _s5(
    width: int,
    layers: int,
    n: int,
    blocks: int,
    base: float,
    factor: float,
    own: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Settings:
    """lr is `factor` times `base`, the rate of the poles, as the released scripts say it; `own` are the mixer's."""
    options = {"two_sided": True, "d_state": n, "blocks": blocks, "lr_scale": 1 / factor, **(own or {})}
    return Settings(mixer="s5", options=options, d_model=width, num_layers=layers, lr=base * factor, **rest)


# What the scripts call opt_config=BfastandCdecay, BandCdecay and dt_global; activation_fn and C_init are theirs too.
_B_FAST = {"B_lr_scale": 1.0, "B_decay": True, "c_init": "lecun_normal"}
_DT_FAST = {"dt_lr_scale": 1.0}
_HALF2 = {"activation": "half_glu2"}
# Smith et al. 2023 (S5), the released scripts (lindermanlab/S5, bin/run_experiments). Theirs decays single numbers of a
# channel too (D, biases, the steps where they learn fast), and the momentum of its norms is .95, on Path* .9.
S5 = {
    "listops": _s5(
        128, 8, 16, 8, 0.001, 3, _B_FAST | _HALF2, batch_size=50, epochs=40, warmup=1 / 40, weight_decay=0.04
    ),
    "text": _s5(
        256,
        6,
        192,
        12,
        0.001,
        4,
        _DT_FAST | _HALF2 | {"c_init": "lecun_normal"},
        dropout=0.1,
        batch_size=50,
        epochs=35,
        warmup=0.0,
        weight_decay=0.07,
        length=4096,
    ),
    "retrieval": _s5(128, 6, 256, 16, 0.001, 2, _DT_FAST, batch_size=32, epochs=20, warmup=1 / 20, length=4000),
    "image": _s5(
        512, 6, 384, 3, 0.001, 4.5, _B_FAST, dropout=0.1, batch_size=50, epochs=250, warmup=1 / 250, weight_decay=0.07
    ),
    "pathfinder": _s5(
        192, 6, 256, 8, 0.0009, 5, dropout=0.05, batch_size=64, epochs=200, warmup=1 / 200, weight_decay=0.03
    ),
    "pathx": _s5(
        128,
        6,
        256,
        16,
        0.0006,
        3,
        {"B_decay": True, "c_init": "complex_normal", "dt_min": 1e-4},
        batch_size=32,
        epochs=75,
        warmup=1 / 75,
        weight_decay=0.06,
    ),
}
_SMALL = Settings(
    mixer="s4d", options={"two_sided": True, "d_state": 16}, d_model=64, num_layers=4, epochs=10, lr=0.004
)
SMALL = {
    "listops": _SMALL,
    "text": replace(_SMALL, length=1024),
    "retrieval": replace(_SMALL, length=1000),
    "image": _SMALL,
    "pathfinder": _SMALL,
    "pathx": replace(_SMALL, options={**_SMALL.options, "dt_min": 1e-4}),
}
PRESETS: dict[str, dict[str, Settings]] = {"s4": S4, "s4d": S4D, "s5": S5, "small": SMALL}
"""Name -> task -> settings."""

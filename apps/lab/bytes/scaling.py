"""How the loss falls with the operations of a training, over a few sizes of one model, and the power law through it.

    bits = (C / C0)^(-alpha),   C = 6 N D,   N parameters but the embedding's, D bytes learned from

Source: Kaplan et al. 2020, Scaling laws for neural language models; Gu & Dao 2023, Mamba, sec. 4.2 (its shapes).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import yaml

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from tqdm import tqdm

from ssmcore.engine import cli
from ssmcore.registry import resolve

from .. import running
from . import run as runs
from .config import BytesConfig, ScalingConfig, sizes


@dataclass(frozen=True, kw_only=True)
class Law:
    """bits = (C / C0)^(-alpha)."""

    alpha: float
    """How fast bits fall."""
    compute: float
    """C0, at which they would be 1."""
    residual: float
    """Root mean square of the logarithm's errors at the points."""

    def at(self, compute: float) -> float:
        """Bits per byte at a number of operations. No shapes, raises nothing."""
        return (compute / self.compute) ** -self.alpha


def fit_law(compute: Sequence[float], bits: Sequence[float]) -> Law:
    """The line through the logarithms, by least squares. No shapes.

    Args:
        compute: Operations, at least two different ones.
        bits: Bits per byte there.
    Raises:
        ValueError: There are fewer than two points, or one is not positive.
    """
    if len(set(compute)) < 2 or len(compute) != len(bits) or min(*compute, *bits) <= 0:
        raise ValueError(f"fit_law: {len(compute)} operations and {len(bits)} bits, expected at least 2, all positive")
    x, y = np.log(compute), np.log(bits)
    slope, start = np.polyfit(x, y, 1)
    residual = float(np.sqrt(np.mean((slope * x + start - y) ** 2)))
    return Law(alpha=-slope, compute=math.exp(-start / slope), residual=residual)


def run(config: ScalingConfig) -> tuple[list[dict], Law]:
    """Train what is missing, fit, and write scaling.json and scaling.png.

    Args:
        config: What to do.
    Returns:
        A point a size (its result, with `compute`), and the law. No shapes.
    Raises:
        ValueError: An option or the text is not what it should be.
        Interrupted: SIGINT or SIGTERM came; the same call goes on from there.
    """
    for key in config.train:
        resolve(key, BytesConfig.__dataclass_fields__, "option of a run")
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    points = []
    with tqdm(config.sizes, unit="size", disable=None) as bar:
        for layers, width in bar:
            bar.set_postfix_str(f"{layers} layers of {width}")
            points.append(_point(config, folder, layers, width))
    law = fit_law([p["compute"] for p in points], [p["test_bits"] for p in points])
    (folder / "scaling.json").write_text(json.dumps({"points": points, "law": asdict(law)}, indent=1))
    draw(points, law, folder / "scaling.png")
    return points, law


def draw(points: Sequence[dict], law: Law, path: Path) -> None:
    """The points and the law, both axes logarithmic. No shapes.

    Args:
        points: As `run` returns them.
        law: Through them.
        path: PNG file.
    """
    compute = [p["compute"] for p in points]
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    axis.plot(compute, [p["test_bits"] for p in points], "o", label=points[0]["mixer"])
    line = np.geomspace(min(compute) / 1.5, max(compute) * 1.5, 50)
    axis.plot(line, [law.at(c) for c in line], "--", color="grey", label=f"(C / {law.compute:.1e})^-{law.alpha:.3f}")
    for p in points:
        axis.annotate(f"{p['layers']} x {p['width']}", (p["compute"], p["test_bits"]), fontsize=8)
    axis.set(xscale="log", yscale="log", xlabel="operations 6 N D", ylabel="bits per byte, held out")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _point(config: ScalingConfig, folder: Path, layers: int, width: int) -> dict:
    told = {"data": config.data, "output": str(folder / "runs"), **config.train}
    train = BytesConfig(**told, num_layers=layers, d_model=width)
    model = runs.build(train)
    active = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    how = sizes(train)
    if train.steps is None:
        train = replace(train, steps=math.ceil(config.bytes_per_parameter * active / (how.batch_size * how.length)))
    plain = yaml.safe_load(cli.dump(train))
    found = None
    for path in sorted((folder / "runs").glob(f"*/{cli.CONFIG_FILE}")):
        if yaml.safe_load(path.read_text()) == plain:
            found = path.parent
    if found is not None and (found / running.RESULT_FILE).is_file():
        result = json.loads((found / running.RESULT_FILE).read_text())
    else:
        result = asdict(runs.run(replace(train, resume=None if found is None else str(found)), silent=True))
    return {**result, "layers": layers, "width": width, "compute": 6 * active * result["train_bytes"]}

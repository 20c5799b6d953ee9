"""Pictures: images with their likeliest classes, the pixels that decided, and how far one position sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg")


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One image with its answer."""

    pixels: np.ndarray
    """As the model saw it, in [0, 1], shape (height, width, 3)."""
    influence: np.ndarray
    """Signed influence on the likeliest class, any shape (i, j)."""
    field: np.ndarray
    """Effective receptive field, largest 1, any shape (i, j)."""
    answers: Sequence[tuple[str, float]]
    """Classes with their probabilities, the likeliest first."""
    title: str
    """Over the image."""


def plot_explained(path: str | Path, rows: Sequence[Explained]) -> None:
    """A row an image: image, influence on it, receptive field, probabilities.

    Args:
        path: PNG file.
        rows: At least one.
    """
    figure = Figure(figsize=(11, 2.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1, 1, 1, 1.3))
    for (image, overlay, field, bars), row in zip(axes, rows, strict=True):
        height, width = row.pixels.shape[:2]
        frame = (-0.5, width - 0.5, height - 0.5, -0.5)
        image.imshow(row.pixels)
        image.set_title(row.title, fontsize=9)
        overlay.imshow(0.55 + 0.4 * row.pixels.mean(-1), cmap="gray", vmin=0, vmax=1, extent=frame)  # pale
        most = float(np.abs(row.influence).max()) or 1.0
        strength = np.abs(row.influence) / most
        overlay.imshow(
            row.influence, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.85 * np.sqrt(strength), extent=frame
        )  # fmt: skip
        overlay.set_title(f"for (red) and against: {row.answers[0][0]}", fontsize=9)
        field.imshow(np.log10(row.field.clip(1e-4)), cmap="magma", vmin=-4, vmax=0, extent=frame)
        field.set_title("what the middle sees (log)", fontsize=9)
        for axis in (image, overlay, field):
            axis.set_axis_off()
        names, shares = zip(*row.answers[::-1], strict=True)
        bars.barh(range(len(names)), shares, color=["0.75"] * (len(names) - 1) + ["#0f62ab"])
        bars.set_yticks(range(len(names)), [name[:24] for name in names], fontsize=8)
        bars.set_xlim(0, 1)
        bars.tick_params(axis="x", labelsize=8)
        for side in ("top", "right"):
            bars.spines[side].set_visible(False)
    figure.savefig(path, dpi=80)

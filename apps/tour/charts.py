"""Drawings for the report: matplotlib's SVG with the page's own colours, so that they follow light and dark."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure as Canvas

# Colours that stand for the page's variables: drawn as these, then replaced in the SVG.
INK, SOFT, LINE = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808")
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", **{c: f"--c{i}" for i, c in enumerate(SERIES)}}
_STYLE = {
    "svg.fonttype": "none", "font.size": 10, "text.color": INK, "axes.edgecolor": LINE, "axes.labelcolor": SOFT,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "legend.frameon": False, "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.titlecolor": INK, "axes.facecolor": "none", "figure.facecolor": "none",
}  # fmt: skip


@contextmanager
def drawing(width: float, height: float, name: str):
    """A matplotlib figure of this size in inches, and a function that gives its SVG.

    Args:
        width: 8 fills the page.
        height: In the same unit.
        name: Unique in the report; keeps the ids of two drawings apart.
    Yields:
        The figure and the function.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Canvas(figsize=(width, height), layout="constrained")

        def svg() -> str:
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
            return _inline(buffer.getvalue(), name)

        yield figure, svg


def _inline(svg: str, name: str) -> str:
    """What may stand in an HTML page: no prologue, no metadata, no namespaces, own ids, the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'\sid="(?=[a-zA-Z])', f' id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(colour, f"var({variable})", svg, flags=re.I)
    return svg.strip()


def bars(groups: Mapping[str, Mapping[str, float]], unit: str, name: str) -> str:
    """Horizontal bars on a logarithmic axis, one panel a group, the first bar in the accent colour.

    Args:
        groups: Title of the panel -> name of the bar -> value > 0.
        unit: Label of the axis.
        name: Unique in the report.
    Returns:
        SVG.
    """
    most = max(len(values) for values in groups.values())
    with drawing(8, 0.7 + 0.32 * most, name) as (figure, svg):
        axes = figure.subplots(1, len(groups), squeeze=False)[0]
        for axis, (title, values) in zip(axes, groups.items(), strict=True):
            labels, numbers = list(values), list(values.values())
            colours = [SERIES[0], *[SOFT] * (len(labels) - 1)]
            shown = axis.barh(labels, numbers, color=colours, height=0.6, alpha=0.9)
            axis.bar_label(shown, [_short(v) for v in numbers], padding=3, color=INK, fontsize=9)
            axis.set(title=title, xlabel=unit, xscale="log", xlim=(min(numbers) / 2, max(numbers) * 5))
            axis.invert_yaxis()
            axis.grid(axis="y", visible=False)
            axis.tick_params(left=False)
            axis.minorticks_off()
        return svg()


def lines(axis, x: Sequence, series: Mapping[str, Sequence[float]], names: Sequence[str]) -> None:
    """Draw named curves, the first name strongest.

    Args:
        axis: Of matplotlib.
        x: Positions, shape (t,).
        series: Name -> values, shape (t,).
        names: All names of the section, in order: the place gives the colour, so that drawings agree.
    """
    for label, y in series.items():
        place = names.index(label)
        axis.plot(x, y, label=label, color=SERIES[place % len(SERIES)], linewidth=1.4 if place else 2.0)


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"

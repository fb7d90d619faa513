"""Charts as inline SVG, which follows the page's colours, and as PNG files.

matplotlib draws them. Every colour is one of `COLORS`; in the SVG it is replaced by the page's
variable of that name, so the same chart reads on light and on dark.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLORS = {
    "ink": "#1d2430",
    "faint": "#8a93a3",
    "grid": "#e2e6ed",
    "accent": "#2563eb",
    "second": "#d9480f",
    "third": "#0b7a4b",
    "fourth": "#8b3fc7",
    "fifth": "#b8860b",
    "sixth": "#c2255c",
}
"""Light theme; the page has the dark one under the same names."""

LINES = ("accent", "second", "third", "fourth", "fifth", "sixth")
_MOST_NAMED = len(LINES)
_MOST_NAMES_AT_A_TABLE = 150
# A phone shows a chart in about its own size.
_SIZE = (4.4, 2.9)
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": COLORS["faint"],
    "axes.labelcolor": COLORS["ink"],
    "text.color": COLORS["ink"],
    "xtick.color": COLORS["faint"],
    "ytick.color": COLORS["faint"],
    "xtick.labelcolor": COLORS["ink"],
    "ytick.labelcolor": COLORS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Names come from data: a dollar sign is a dollar sign.
    "text.parse_math": False,
}


# Longer names of lines than this stand two in a row below a chart, not three.
_NAME_OF_THREE = 14


@contextlib.contextmanager
def _style(**changes: Any) -> Iterator[None]:
    """Sets how charts look, and is silent on signs that the font lacks: the page has its own."""
    with matplotlib.rc_context({**_STYLE, **changes}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


class Line(NamedTuple):
    """A line of a chart: x and y [n]; a faint one has no name in the legend."""

    name: str
    x: np.ndarray
    y: np.ndarray
    is_faint: bool = False


def line_chart(
    lines: Sequence[Line],
    path: Path,
    *,
    title: str,
    labels: tuple[str, str],
    limits: tuple[float, float] | None = None,
    mark: tuple[float, float, str] | None = None,
    with_points: bool = False,
) -> str:
    """Draws lines; where there are more than can be told apart, all but the first are faint.

    Args:
      lines: the first is drawn strongest.
      path: of the PNG file.
      title: above the chart.
      labels: of the x axis and of the y axis.
      limits: of the y axis; None: by the data.
      mark: a point (x, y) to mark and what is said of it.
      with_points: mark the lines' points, where they are few.

    Returns:
      The `<svg>` element.
    """
    with _style():
        figure, axes = _new_chart(title, labels)
        many = len(lines) > _MOST_NAMED
        for i, line in enumerate(lines):
            faint = line.is_faint or (many and i > 0)
            axes.plot(
                line.x,
                line.y,
                color=COLORS["faint"] if faint else COLORS[LINES[i % _MOST_NAMED]],
                linewidth=0.7 if faint else 2.0 if i == 0 else 1.4,
                alpha=0.6 if faint else 1.0,
                zorder=2 if faint else 5 - i / 100,
                marker="o" if with_points and len(line.x) < 30 else None,
                markersize=3.5,
                # A name that begins with an underscore would be left out of the legend.
                label="_nolegend_" if faint else re.sub("^_", " _", _short(line.name)),
            )
        if limits:
            axes.set_ylim(*limits)
        if mark:
            axes.plot(*mark[:2], "o", color=COLORS["ink"], markersize=6, zorder=9)
            axes.annotate(
                mark[2],
                mark[:2],
                xytext=(0, 9),
                textcoords="offset points",
                ha="left" if mark[0] < 0.3 else "right" if mark[0] > 0.7 else "center",
            )
        if sum(not line.is_faint for line in lines) > 1:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
            longest = max(len(_short(line.name)) for line in lines if not line.is_faint)
            in_row = 3 if longest <= _NAME_OF_THREE else 2
            axes.legend(**below, ncols=in_row, fontsize=8.5, handlelength=1.2, columnspacing=1.2)
        return _finish(figure, path)


def bar_chart(
    names: Sequence[str], values: Sequence[float], path: Path, *, title: str, label: str
) -> str:
    """Draws lying bars with their values at their ends; returns the `<svg>` element."""
    with _style():
        figure, axes = _new_chart(title, (label, ""), size=(_SIZE[0], 0.9 + 0.3 * len(names)))
        places = np.arange(len(names))
        bars = axes.barh(places, values, height=0.66, color=COLORS["accent"])
        axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3)
        axes.set_yticks(places, [_short(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlim(left=min(0.0, *values))
        return _finish(figure, path)


def draw_table(table: np.ndarray, names: Sequence[str], path: Path, *, title: str) -> None:
    """Draws counts as a picture of shades, rows against columns, as a PNG file.

    Args:
      table: int [n, n]; shades are shares of a row.
      names: [n] of rows and columns.
      path, title: of the file, and above it.
    """
    with _style(**{"axes.grid": False}):
        side = min(4.0 + 0.24 * len(names), 20.0)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        shades = matplotlib.colors.LinearSegmentedColormap.from_list(
            "shades", ["#ffffff", COLORS["accent"]]
        )
        shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap=shades, vmin=0, vmax=1)
        small = 8 if len(names) <= 20 else 5
        ticks = np.arange(len(names)) if len(names) <= _MOST_NAMES_AT_A_TABLE else []
        names = names[: len(ticks)]
        axes.set_xticks(ticks, [_short(n) for n in names], rotation=90, fontsize=small)
        axes.set_yticks(ticks, [_short(n) for n in names], fontsize=small)
        axes.set(title=title, xlabel="detected as", ylabel="annotated as")
        if 0 < len(names) <= 20:
            for (row, column), count in np.ndenumerate(table):
                dark = shares[row, column] > 0.5
                if count:
                    color = "#ffffff" if dark else COLORS["ink"]
                    axes.text(column, row, count, ha="center", va="center", color=color)
        FigureCanvasAgg(figure).print_png(str(path))


def _new_chart(
    title: str, labels: tuple[str, str], *, size: tuple[float, float] = _SIZE
) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return figure, axes


def _finish(figure: Figure, path: Path) -> str:
    """Writes the PNG; returns the chart as an `<svg>` element in the page's colours."""
    FigureCanvasAgg(figure).print_figure(str(path), dpi=150, facecolor="#ffffff")
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The size is the page's to choose.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # Ids of clip paths and marks are made from their shapes: equal ids are equal shapes.
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"

"""Time of selections against size, on logarithmic scales, a panel for each axis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .data import SELECTORS

COLUMNS, PANEL = 3, (4.6, 3.9)  # inches
MARKERS = "osD^v<>PX*ph"
APART = 0.04  # of a panel's height, between two numbers


def draw(result: dict[str, Any], labels: Mapping[str, str], file: Path) -> None:
    """A panel for each axis that has rows; selectors are dashed, and each line's exponent stands behind it.

    Args:
        labels: axis -> what grows, in words.
    """
    from matplotlib.figure import Figure

    axes = [name for name in labels if any(row["axis"] == name for row in result["rows"])]
    down = -(-len(axes) // COLUMNS)
    figure = Figure(figsize=(PANEL[0] * min(COLUMNS, len(axes)), PANEL[1] * down + 0.9), layout="constrained")
    panels = list(figure.subplots(down, min(COLUMNS, len(axes)), squeeze=False).flat)
    for panel in panels[len(axes) :]:
        panel.axis("off")
    several: dict[tuple[str, ...], tuple[Any, dict[str, Any]]] = {}
    for panel, axis in zip(panels, axes, strict=False):
        rows = [row for row in result["rows"] if row["axis"] == axis]
        known = _panel(panel, rows, labels[axis], result["exponents"])
        several.setdefault(tuple(known), (panel, known))
    _legends(figure, list(several.values()), room=len(panels) > len(axes))
    figure.suptitle(f"Time of one selection, float32 of width {result['width']:,}\n{result['device']}", size=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _legends(figure: Any, several: list[tuple[Any, dict[str, Any]]], *, room: bool) -> None:
    """What the first panels show below all of them; what others show next to those, where there may be room."""
    (_, first), *others = several
    figure.legend(first.values(), first.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=8.5)
    for panel, known in others:
        legend = panel.legend(
            known.values(), known.keys(), loc="center left", bbox_to_anchor=(1.1, 0.5), frameon=False, fontsize=8.5
        )
        legend.set_in_layout(not room)


def _panel(panel: Any, rows: list[dict], label: str, exponents: list[dict]) -> dict[str, Any]:
    """Name -> its line."""
    known, slopes = {}, {(one["axis"], one["what"]): one["exponent"] for one in exponents}
    ends = []
    for place, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
        mine = [row for row in rows if row["what"] == what]
        (known[what],) = panel.plot(
            [row["x"] for row in mine], [1000 * row["seconds"] for row in mine], marker=MARKERS[place % len(MARKERS)],
            color=_colour(place), linestyle="--" if what in SELECTORS else "-", markersize=4, linewidth=1.3,
        )  # fmt: skip
        slope = slopes.get((mine[0]["axis"], what))
        if slope is not None:
            ends.append((1000 * mine[-1]["seconds"], mine[-1]["x"], f"{slope:.1f}", _colour(place)))
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    sizes = sorted({row["x"] for row in rows})
    panel.set_xticks(sizes, [f"{x:,}" for x in sizes], fontsize=8, rotation=30 if sizes[-1] > 999 else 0)
    panel.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.6)
    panel.tick_params(axis="y", labelsize=8)
    panel.set_xlabel(label, fontsize=9)
    panel.set_ylabel("ms", fontsize=9)
    panel.grid(alpha=0.25, linewidth=0.5)
    _written(panel, ends)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    return known


def _written(panel: Any, ends: list[tuple[float, float, str, Any]]) -> None:
    """The exponents behind the lines' ends, moved apart where those of lines that end at one size would meet."""
    low, high = map(math.log, panel.get_ylim())
    for x in {x for _, x, _, _ in ends}:
        mine = sorted((math.log(y), text, colour) for y, other, text, colour in ends if other == x)
        places = spread([y for y, _, _ in mine], APART * (high - low))
        for place, (_, text, colour) in zip(places, mine, strict=True):
            panel.text(x * 1.12, math.exp(place), text, color=colour, fontsize=7, va="center")


def spread(values: list[float], apart: float) -> list[float]:
    """The ascending values, those nearer than `apart` moved to that distance around their mean."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _evenly(groups[-1], apart)[0] - _evenly(groups[-2], apart)[-1] < apart:
            last = groups.pop()
            groups[-1] += last
    return [place for group in groups for place in _evenly(group, apart)]


def _evenly(group: list[float], apart: float) -> list[float]:
    first = statistics.mean(group) - apart * (len(group) - 1) / 2
    return [first + apart * i for i in range(len(group))]


def _colour(place: int) -> Any:
    """Of 20 that can be told apart, the strong ones first."""
    from matplotlib import colormaps

    return colormaps["tab20"]((2 * place + place // 10) % 20)

"""The picture of the demo: a block per question, a row per policy, a column per budget."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from tokenprune.view import faded, spread

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, MUTED, RIGHT, WRONG = "#1f2328", "#656d76", "#1a7f37", "#cf222e"
PANEL, LABEL, HEADER, GAP = 1.25, 0.95, 1.75, 0.35  # inches


@dataclass
class Block:
    """One picture [H, W, 3] in 0..1 with its question, and results with `answer` and `report` by (policy, budget)."""

    image: np.ndarray
    question: str
    truth: str | None
    dense: str
    results: dict[tuple[str, float], Any]


def patches(image: np.ndarray, unit: Any) -> tuple[np.ndarray, np.ndarray]:
    """The picture with dropped patches faded and merged ones averaged, [H, W, 3], and which pixels are kept, [H, W]."""
    _, rows, columns = unit.grid
    source = spread(unit.source.numpy().reshape(rows, columns), *image.shape[:2])
    kept = source >= 0
    shown = faded(image, kept)
    if np.bincount(unit.source[unit.source >= 0]).max() > 1:
        shown[kept] = _averages(image[kept], source[kept])
    return shown, kept


def _averages(colors: np.ndarray, group: np.ndarray) -> np.ndarray:
    """[n, 3] colours -> each the mean of its group [n]."""
    sums = np.stack([np.bincount(group, channel) for channel in colors.T], -1)
    return (sums / np.bincount(group).clip(1)[:, None])[group]


def draw(blocks: list[Block], policies: tuple[str, ...], budgets: tuple[float, ...], out: Path) -> None:
    """Write the picture of all blocks, side by side."""
    step = PANEL + 0.06
    block = len(budgets) * step
    width = LABEL + len(blocks) * block + (len(blocks) - 1) * GAP + 0.15
    height = HEADER + 0.5 + len(policies) * (step + 0.2) + 0.1
    figure = plt.figure(figsize=(width, height), facecolor="white")

    def axes(left: float, top: float, size: float):
        made = figure.add_axes((left / width, 1 - (top + size) / height, size / width, size / height))
        made.set(xticks=[], yticks=[])
        for spine in made.spines.values():
            spine.set(color="#d0d7de", linewidth=0.6)
        return made

    def write(left: float, top: float, text: str, **style):
        style = {"color": INK, "fontsize": 9, "va": "top", "ha": "left"} | style
        return figure.text(left / width, 1 - top / height, text, **style)

    for number, one in enumerate(blocks):
        left = LABEL + number * (block + GAP)
        right = one.truth or one.dense
        axes(left, 0.2, 1.35).imshow(one.image, interpolation="nearest")
        write(
            left + 1.5,
            0.25,
            textwrap.fill(one.question, 26, max_lines=3),
            fontsize=11.5,
            fontweight="bold",
            linespacing=1.25,
        )
        dense = "dense answer: " + (one.dense or "(nothing)")
        write(left + 1.5, 0.95, dense, color=RIGHT if one.dense == right else WRONG, fontsize=10)
        if one.truth:
            write(left + 1.5, 1.2, f"right answer: {one.truth}", color=MUTED, fontsize=10)
        for column, keep in enumerate(budgets):
            middle = left + column * step + PANEL / 2
            report = one.results[policies[0], keep].report
            write(middle, HEADER, f"{keep:.0%}", ha="center", fontsize=11, fontweight="bold")
            write(middle, HEADER + 0.2, f"{report.kept} of {report.total} tokens", ha="center", color=MUTED, fontsize=8)
            for row, policy in enumerate(policies):
                top = HEADER + 0.42 + row * (step + 0.2)
                result = one.results[policy, keep]
                shown, kept = patches(one.image, result.report.units[0])
                panel = axes(left + column * step, top, PANEL)
                panel.imshow(shown, interpolation="nearest")
                if not kept.all():  # an outline, for pictures that are dark themselves
                    panel.contour(kept, levels=[0.5], colors="white", linewidths=0.4)
                write(
                    middle,
                    top + PANEL + 0.03,
                    result.answer or "(nothing)",
                    ha="center",
                    color=RIGHT if result.answer == right else WRONG,
                    fontweight="bold",
                )
    for row, policy in enumerate(policies):
        top = HEADER + 0.42 + row * (step + 0.2) + PANEL / 2
        write(LABEL - 0.1, top, policy, ha="right", va="center", fontsize=10.5, fontweight="bold")
    figure.savefig(out, dpi=130)
    plt.close(figure)

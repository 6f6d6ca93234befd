"""Where the time to the first token goes, beside the oracle, as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PARTS = {"vision_ms": ("vision tower", "#8da0cb"), "selection_ms": ("selection", "#fc8d62"),
         "prefill_ms": ("language model", "#66c2a5")}  # fmt: skip
ROW, WIDTH = 0.36, 9.0  # inches


def draw(result: dict[str, Any], file: Path) -> None:
    """A panel for each batch size, a bar for each row; a diamond where the oracle is, its speed-up behind the bar."""
    from matplotlib.figure import Figure

    panels = [[row for row in result["rows"] if row["batch"] == batch] for batch in result["batches"]]
    panels = [rows for rows in panels if rows]  # the run may have ended before the last
    heights = [len(rows) for rows in panels]
    figure = Figure(figsize=(WIDTH, ROW * sum(heights) + 0.9 * len(panels) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, rows in zip(axes, panels, strict=True):
        _panel(axis, rows)
    scale = "" if result["scale"] == 1 else f", scale {result['scale']:g}"
    figure.suptitle(
        f"{result['shape']}{scale}, {result['dtype']}: time to the first token\n{result['device']}", size=10
    )
    axes[-1].set_xlabel("ms")
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _panel(axis: Any, rows: list[dict]) -> None:
    most = max(row["ttft_ms"][2] for row in rows)
    for i, row in enumerate(rows):
        left, total = 0.0, row["ttft_ms"][0]
        for name, (label, colour) in PARTS.items():
            axis.barh(i, row[name][0], left=left, color=colour, label=label if i == 0 else None, height=0.7)
            left += row[name][0]
        spread = [[total - row["ttft_ms"][1]], [row["ttft_ms"][2] - total]]
        label = "TTFT, lowest to highest" if i == 0 else None
        axis.errorbar(total, i, xerr=spread, fmt="|", color="black", capsize=2, markersize=9, linewidth=1, label=label)
        if row["oracle_ttft_ms"]:
            axis.plot(row["oracle_ttft_ms"][0], i, "D", color="white", markeredgecolor="black", markersize=5)
        axis.text(max(row["ttft_ms"][2], left) + 0.015 * most, i, f"{row['ttft_speedup'][0]:.2f}x", va="center", size=8)
    axis.plot([], [], "D", color="white", markeredgecolor="black", markersize=5, label="oracle")
    names = [f"{row['policy']} {row['keep']}" if "(" not in row["policy"] else row["policy"] for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * most)
    axis.set_title(f"batch {rows[0]['batch']}", size=9, loc="left")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)

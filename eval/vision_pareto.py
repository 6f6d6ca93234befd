"""Tables and plot of what `eval.vision_accuracy` and `eval.vision_composed` measured."""

from __future__ import annotations

from pathlib import Path

from .files import read
from .pareto import COLORS, DARK, GRAY, cell_text, save, verdict
from .vision_plans import STEPS

DENSE = "dense"
ARROWS = {"": "", " +": " ↑", " −": " ↓"}
# Result -> title of its panel, and its rows that are drawn: color and style
PANELS = {
    "vision_vit": (
        "image classifier",
        {
            "tome": (COLORS[0], "-"),
            "tome, plain": (COLORS[0], ":"),
            "evit": (COLORS[1], "-"),
            "random-blocks": (GRAY, "-"),
            "random-blocks, as evit": (GRAY, ":"),
        },
    ),
    "vision_motion": (
        "clip classifier",
        {
            "sta": (COLORS[2], "-"),
            "tome": (COLORS[0], "-"),
            "tome, plain": (COLORS[0], ":"),
            "random-blocks": (GRAY, "-"),
            "random-blocks, as sta": (GRAY, ":"),
        },
    ),
    "vision_composed_images": (
        "vision-language model",
        {
            "tome": (COLORS[0], "-"),
            "uniform": (COLORS[4], "-"),
            "fastv": (COLORS[3], "-"),
            "uniform + fastv": (COLORS[3], ":"),
            "tome, restored + uniform": (COLORS[1], "-"),
            "tome, restored + uniform + fastv": (COLORS[1], ":"),
            "random-blocks": (GRAY, "-"),
        },
    ),
}


def by_row(result: dict) -> dict[str, list[dict]]:
    """Row -> its cells, the most FLOPs first, without the dense one."""
    rows: dict[str, list[dict]] = {}
    for cell in sorted(result["rows"], key=lambda cell: -cell["flops"]):
        if cell["row"] != DENSE:
            rows.setdefault(cell["row"], []).append(cell)
    return {name: rows[name] for name in dict.fromkeys(cell["row"] for cell in result["rows"]) if name in rows}


def figure_of(cell: dict) -> dict:
    """Of the only set there is."""
    (figure,) = cell["sets"].values()
    return figure


def text_of(cell: dict) -> str:
    """Accuracy, and which way it differs from a control and from another row."""
    figure = figure_of(cell)
    other = next((figure[key] for key in figure if key.startswith("over_") and key != "over_random"), None)
    return cell_text(figure, verdict(figure) + ARROWS[verdict({"over_random": other})])


def tables(result: dict) -> str:
    """Accuracy, FLOPs and throughput by row and column, and where the tokens left are; and accuracy by kind."""
    rows, ((name, facts),) = by_row(result), result["sets"].items()
    columns = sorted({cell["keep"] for cells in rows.values() for cell in cells})
    by = {(row, cell["keep"]): cell for row, cells in rows.items() for cell in cells}
    dense = next(cell for cell in result["rows"] if cell["row"] == DENSE)
    flops = {column: max(by[row, column]["flops"] for row in rows if (row, column) in by) for column in columns}
    heads = " | ".join(f"r={column} ({flops[column]:.0%})" for column in columns)
    best = {c: max(figure_of(by[row, c])["accuracy"] for row in rows if (row, c) in by) for c in columns}

    def table(title: str, text) -> list[str]:
        lines = [f"| {title} | {heads} |", "|---|" + "---:|" * len(columns)]
        for row in rows:
            cells = (text(by[row, c], c) if (row, c) in by else "" for c in columns)
            lines.append(f"| {row} | {' | '.join(cells)} |")
        return [*lines, ""]

    def accuracy(cell: dict, column: int) -> str:
        return f"**{text_of(cell)}**" if figure_of(cell)["accuracy"] == best[column] else text_of(cell)

    seeds = max((len(cell["right"]) for cell in result["rows"]), default=1)
    lines = table(f"{name}: accuracy", accuracy)
    lines.append(
        f"Accuracy in % on {facts['asked']:,} held-out {name}, ± half the 95 % interval. Dense ({result['patches']} "
        f"patches): {100 * figure_of(dense)['accuracy']:.2f}; always the commonest label: "
        f"{100 * facts['majority'] / facts['asked']:.1f}. In brackets the FLOPs of the blocks, % of dense, that no row "
        "of a column exceeds. **Bold**: highest. + better, − worse than random patches at the same blocks and counts "
        f"(mean of {seeds} seeds) on the same {name}; ↑ better, ↓ worse than `tome` there: the 95 % interval of the "
        "paired difference leaves out zero (not corrected for the number of comparisons)."
    )
    speeds = table("throughput", lambda cell, column: f"{cell['speed']:.2f} ({cell['flops']:.0%})")
    became = ("kept", "on", "pure")
    kept = table(", ".join(became), lambda cell, column: " / ".join(f"{100 * cell[one]:.0f}" for one in became))
    lines += [
        "",
        *speeds,
        "Samples a second as a multiple of the dense model's (in brackets the row's own FLOPs): median over rounds in "
        f"which all take turns, batch {result['batch']}, on {result['machine']}.",
        "",
        *kept,
        "% of the patches left; % of the patches that show the shape left; and of the tokens that carry these on, the "
        "part that is of the shape, 0 where nothing carries them.",
        "",
    ]
    for kind, count in facts["by_kind"].items():

        def of_kind(cell: dict, column: int, kind: str = kind) -> str:
            return f"{100 * figure_of(cell)['by_kind'][kind]['accuracy']:.0f}"

        lines += table(f"{kind} ({count})", of_kind)
    return "\n".join(lines).rstrip() + "\n"


def composed_tables(result: dict) -> str:
    """Markdown: accuracy by row and budget, then what ran."""
    rows, ((name, facts),) = by_row(result), result["sets"].items()
    by = {(row, cell["keep"]): cell for row, cells in rows.items() for cell in cells}
    budgets = sorted({keep for _, keep in by}, reverse=True)
    dense = next(cell for cell in result["rows"] if cell["row"] == DENSE)
    best = {b: max(figure_of(cell)["accuracy"] for (_, keep), cell in by.items() if keep == b) for b in budgets}
    lines = [f"| {name} | " + " | ".join(f"{b:.0%}" for b in budgets) + " |", "|---|" + "---:|" * len(budgets)]
    for row in rows:
        texts = []
        for b in budgets:
            cell = by.get((row, b))
            text = "" if cell is None else text_of(cell)
            bold = cell is not None and figure_of(cell)["accuracy"] == best[b]
            texts.append(f"**{text}**" if bold else text)
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    lines += [
        "",
        f"Accuracy in % on {facts['asked']:,} held-out {name}, a question each, ± half the 95 % interval. Dense: "
        f"{100 * figure_of(dense)['accuracy']:.2f}; always the commonest answer of each kind: "
        f"{100 * facts['majority'] / facts['asked']:.1f}. Columns: estimated FLOPs of tower, prefill and {STEPS} steps "
        f"of decoding, % of dense, that no row exceeds; {result['tower']:.0%} are the dense tower's. How stages share "
        f"a budget is chosen on {result['tuning']} training {name}. **Bold**: highest. ↑ better, ↓ worse than the best "
        "of the single stages in the column (the best of these answers), + better, − worse than random patches (mean "
        "over seeds): the 95 % interval of the paired difference leaves out zero (not corrected for the number of "
        "comparisons).",
        "",
        "| what ran | budget | FLOPs | tokens that the first layer reads |",
        "|---|---:|---:|---:|",
    ]
    for (row, b), cell in by.items():
        lines.append(f"| {row}: {cell['plan']} | {b:.0%} | {cell['flops']:.1%} | {cell['tokens']:.0f} |")
    return "\n".join(lines) + "\n"


def plot(folder: Path) -> None:
    """vision_accuracy.png: accuracy over FLOPs as a share of the dense ones, a panel for each result that is there."""
    results = {name: result for name in PANELS if (result := read(folder / f"{name}.json")) is not None}
    if not results:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.5 * len(results), 5.3)
    figure, axes = plt.subplots(1, len(results), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        _panel(axis, name, result)
    axes[0][0].set_ylabel("accuracy, %")
    save(figure, folder / "vision_accuracy.png")


def _panel(axis, name: str, result: dict) -> None:
    (title, styles), rows, ((_, facts),) = PANELS[name], by_row(result), result["sets"].items()
    dense = next(cell for cell in result["rows"] if cell["row"] == DENSE)
    axis.set_title(f"{title}\n", fontsize=11, loc="left", fontweight="bold")
    axis.text(0, 1.02, f"{facts['asked']:,} {next(iter(result['sets']))}", transform=axis.transAxes, fontsize=9)
    for value, style in ((figure_of(dense)["accuracy"], "--"), (facts["majority"] / facts["asked"], ":")):
        axis.axhline(100 * value, color=DARK, linestyle=style, linewidth=0.9)
    axis.grid(color="#d0d7de", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    drawn = {row: rows[row] for row in styles if row in rows}
    for row, cells in drawn.items():
        color, style = styles[row]
        x, figures = [100 * cell["flops"] for cell in cells], [figure_of(cell) for cell in cells]
        y = [100 * one["accuracy"] for one in figures]
        bars = [[abs(100 * (one["accuracy"] - one[side])) for one in figures] for side in ("low", "high")]
        axis.errorbar(
            x,
            y,
            yerr=bars,
            color=color,
            linestyle=style,
            marker="o",
            markersize=3.5,
            linewidth=1.5,
            capsize=2,
            label=row,
        )
    axis.set_xscale("log")
    axis.set_xlim(104, 90 * min(cell["flops"] for cells in drawn.values() for cell in cells))
    axis.set_ylim(0, 103)
    ticks = [tick for tick in (100, 75, 50, 35, 25, 18) if tick >= axis.get_xlim()[1]]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("FLOPs, % of dense" + (": all stages" if name.startswith("vision_composed") else ": the blocks"))
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.05, -0.16), handlelength=2.4)

"""Tables and plot of what `tokenprune.eval.video_accuracy` measured."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from .pareto import COLORS, DARK, GRAY, cell_text, dense_cell, label, save, verdict
from .video_rows import FRAMES, GROUPS, IMAGES, RANDOM

SET = "clips"
ARROWS = {" +": " ↑", " −": " ↓", "": ""}
STYLES = {", strict": ":", ", original": "--"}  # of variants of a row
# Panels of the plot: row of the table -> in which one, by its policy
PANELS = {
    "prune, comparing frames": ("evs", "dycoke", "vidcom2", FRAMES),
    "merge over time": ("prunevid", "fastvid", "holitom", "framefusion"),
    "made for images": (*IMAGES, "uniform", "pool"),
}


def write(result: dict, folder: Path) -> str:
    """video_accuracy.md and .png in `folder`; returns the Markdown without the tables by kind."""
    text = tables(result)
    (folder / "video_accuracy.md").write_text("\n".join([text, *kind_tables(result)]))
    if rows_of(result, "exact"):
        plot(result, folder / "video_accuracy.png")
    return text


def rows_of(result: dict, group: str) -> dict[str, list[dict]]:
    """Row -> its cells, largest budget first."""
    rows: dict[str, list[dict]] = {}
    for cell in sorted(result["rows"], key=lambda cell: -cell["keep"]):
        if cell["group"] == group:
            rows.setdefault(cell["row"], []).append(cell)
    order = {cell["row"]: i for i, cell in enumerate(result["rows"])}
    return dict(sorted(rows.items(), key=lambda item: order[item[0]]))


def tables(result: dict) -> str:
    """Accuracy by row and budget, a table per group of rows."""
    dense, facts = dense_cell(result), result["sets"][SET]
    lines = []
    for group, title in GROUPS.items():
        if rows := rows_of(result, group):
            lines += [*_table(rows, group, title, dense["tokens"]), ""]
    majority = 100 * facts["majority"] / facts["asked"]
    lines.append(
        f"Accuracy in % on {facts['asked']:,} held-out clips of 8 frames, a question each, ± half the 95 % interval. "
        f"Dense ({dense['tokens']} tokens): {100 * dense['sets'][SET]['accuracy']:.1f}; always the commonest answer of "
        f"each kind: {majority:.1f}. **Bold**: highest. + better, − worse than `random`, ↑ better, ↓ worse than "
        "`uniform-frames` at the same budget on the same questions: the 95 % interval of the paired difference leaves "
        "out zero (not corrected for the number of comparisons). Of the paper's own count: in brackets the share of "
        "the tokens that it left. Of the other kind of positions: ↑ or ↓ against the same policy with its own. Inside: "
        "budgets are the mean share of the tokens over the four layers, + or − against random tokens at the same layer "
        "and counts (`framefusion`: against `random` in front); in brackets the FLOPs, % of dense. In front and "
        "inside: as many FLOPs as with the one in front alone at that budget, + or − against random tokens inside, ↑ "
        "or ↓ against the one in front alone."
    )
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, list[dict]], group: str, title: str, total: int) -> list[str]:
    keeps = sorted({cell["keep"] for own in rows.values() for cell in own}, reverse=True)
    heads = (f"{keep:.0%} ({round(keep * total)})" for keep in keeps)
    lines = [f"| {title} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(keeps)]
    best = {
        keep: max(_accuracy(cell) for own in rows.values() for cell in own if cell["keep"] == keep) for keep in keeps
    }
    for row, own in rows.items():
        by = {cell["keep"]: cell for cell in own}
        texts = [_text(by[keep], group, total, best[keep]) if keep in by else "" for keep in keeps]
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    return lines


def _accuracy(cell: dict) -> float:
    return cell["sets"][SET]["accuracy"]


def _text(cell: dict, group: str, total: int, best: float) -> str:
    figure = cell["sets"][SET]
    other = next((figure[key] for key in ("over_own", "over_front", "over_frames") if key in figure), None)
    text = cell_text(figure, verdict(figure) + ARROWS[verdict({"over_random": other})])
    text = f"**{text}**" if figure["accuracy"] == best and group == "exact" else text
    if group == "strict":
        return f"{text} ({cell['tokens'] / total:.1%})"
    return f"{text} ({cell['flops']:.1%})" if "flops" in cell else text


def kind_tables(result: dict) -> list[str]:
    """Accuracy by kind of question, a table per budget."""
    kinds, found = result["sets"][SET]["by_kind"], []
    for keep in sorted({cell["keep"] for cell in result["rows"]} - {1.0}, reverse=True):
        heads = (f"{kind} ({count})" for kind, count in kinds.items())
        lines = [f"| {keep:.0%} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(kinds)]
        for cell in [dense_cell(result), *(one for one in result["rows"] if one["keep"] == keep)]:
            figures = (cell["sets"][SET]["by_kind"][kind] for kind in kinds)
            texts = (f"{100 * one['accuracy']:.0f} ± {50 * (one['high'] - one['low']):.0f}" for one in figures)
            lines.append(f"| {cell['row']} | " + " | ".join(texts) + " |")
        found.append("\n".join(lines) + "\n")
    return found


def plot(result: dict, path: Path) -> None:
    """Accuracy over the visual tokens kept, of inside policies over their mean over the layers: a panel per kind.

    Dotted with the paper's own count, dashed with original positions where the paper has compact ones.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    exact, own = rows_of(result, "exact"), rows_of(result, "strict")
    own |= {row: cells for row, cells in rows_of(result, "positions").items() if row.endswith(", original")}
    inside = {row: cells for row, cells in rows_of(result, "inside").items() if len(cells) > 1}
    total, facts = dense_cell(result)["tokens"], result["sets"][SET]
    keeps = sorted({cell["keep"] for cells in exact.values() for cell in cells}, reverse=True)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(5.2 * len(PANELS), 4.6), sharey=True, layout="constrained")
    least = min(cell["tokens"] for rows in (exact, own, inside) for cells in rows.values() for cell in cells)
    for axis, (title, members) in zip(axes, PANELS.items(), strict=True):
        axis.set_title(title, fontsize=11, loc="left", fontweight="bold")
        for value, style in ((_accuracy(dense_cell(result)), "--"), (facts["majority"] / facts["asked"], ":")):
            axis.axhline(100 * value, color=DARK, linestyle=style, linewidth=0.9)
        axis.grid(color="#d0d7de", linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        labels = []
        for row, shade in ((RANDOM, GRAY), (FRAMES, DARK)):
            if row in exact:
                style = {"linewidth": 1.5} if row == RANDOM else {"linewidth": 1.2, "linestyle": "-."}
                x, y = _points(exact[row])
                axis.plot(x, y, color=shade, **style)
                labels.append((y[-1], row, shade))
        colors = dict(zip(members, cycle(COLORS)))
        for row, cells in {**exact, **inside, **own}.items():
            if cells[0]["policy"] not in members or row in (RANDOM, FRAMES):
                continue
            color = colors[cells[0]["policy"]]
            x, y = _points(cells)
            bars = [
                [max(0.0, abs(100 * (_accuracy(cell) - cell["sets"][SET][side]))) for cell in cells]
                for side in ("low", "high")
            ]
            style = {"linestyle": next((STYLES[end] for end in STYLES if row.endswith(end)), "-"), "marker": "o"}
            axis.errorbar(x, y, yerr=bars, color=color, markersize=3.5, linewidth=1.4, capsize=2, **style)
            labels.append((y[-1], row, color))
        axis.set_xscale("log")
        axis.set_xlim(total * keeps[0] * 1.3, least * 0.3)
        axis.set_ylim(0, 103)
        label(axis, labels, least)
        ticks = [keep * total for keep in keeps]
        axis.set_xticks(ticks, [f"{round(tick)}\n{keep:.0%}" for tick, keep in zip(ticks, keeps, strict=True)])
        axis.minorticks_off()
        axis.set_xlabel(f"visual tokens kept, of {total}")
    axes[0].set_ylabel(f"accuracy on {facts['asked']:,} clips, %")
    save(figure, path)


def _points(cells: list[dict]) -> tuple[list[float], list[float]]:
    return [cell["tokens"] for cell in cells], [100 * _accuracy(cell) for cell in cells]

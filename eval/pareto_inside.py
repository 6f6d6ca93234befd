"""Tables and plot of the rows inside the language model, which `eval.inside` explains."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from .pareto import COLORS, DARK, GRAY, cell_text, dense_cell, save, verdict

ALONE = ""


def rows_by_front(result: dict) -> dict[str, dict[str, list[dict]]]:
    """Name of the policy in front, or `ALONE` -> row without it -> its cells, largest budget first."""
    found: dict[str, dict[str, list[dict]]] = {}
    for cell in sorted(result["rows"], key=lambda cell: -cell["keep"]):
        if "against" in cell:
            front, plus, row = cell["row"].rpartition(" + ")
            found.setdefault(front if plus else ALONE, {}).setdefault(row, []).append(cell)
    return found


def tables(result: dict) -> str:
    """Alone at half of the tokens, and behind others, a table per set."""
    fronts = rows_by_front(result)
    alone = fronts.pop(ALONE, {})
    return "\n".join([*(_alone(result, alone) if alone else []), *(_behind(result, fronts) if fronts else [])]) + "\n"


def _alone(result: dict, rows: dict[str, list[dict]]) -> list[str]:
    sets = list(result["sets"])
    lines = ["| inside, 50 % on average | tokens by layer | mean | FLOPs | " + " | ".join(sets) + " |"]
    lines.append("|---|---|---:|---:|" + "---:|" * len(sets))
    for row, (cell,) in rows.items():
        figures = " | ".join(_text(cell["sets"][name]) for name in sets)
        lines.append(f"| {row} | {_counts(cell)} | {cell['tokens']:.0f} | {cell['flops']:.1%} | {figures} |")
    share = next(iter(rows.values()))[0]["flops_in_front"]
    for cell in _in_front(result, 0.5):
        figures = " | ".join(cell_text(cell["few"][name], "") for name in sets)
        lines.append(f"| {cell['row']}, in front | {cell['tokens']} | {cell['tokens']} | {share:.1%} | {figures} |")
    return [*lines, "", _asked(result, rows), ""]


def _behind(result: dict, fronts: dict[str, dict[str, list[dict]]]) -> list[str]:
    lines = []
    for name in result["sets"]:
        cells = next(iter(next(iter(fronts.values())).values()))
        heads = [f"{cell['keep']:.0%} (FLOPs {cell['flops_in_front']:.1%})" for cell in cells]
        lines += [f"| {name} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        for front, rows in fronts.items():
            alone = [_in_front(result, cell["keep"], front)[0] for cell in cells]
            figures = " | ".join(f"{cell_text(one['few'][name], '')} ({one['tokens']})" for one in alone)
            lines.append(f"| {front} alone | {figures} |")
            for row, own in rows.items():
                figures = " | ".join(f"{_text(cell['sets'][name])} ({_counts(cell)})" for cell in own)
                lines.append(f"| {front} + {row} | {figures} |")
        lines += ["", f"{_asked(result, fronts[next(iter(fronts))])} {_equal(fronts)}", ""]
    return lines


def _equal(fronts: dict[str, dict[str, list[dict]]]) -> str:
    """How equal the FLOPs are, and how many tokens that is."""
    said = {}
    for cell in (cell for rows in fronts.values() for own in rows.values() for cell in own):
        said.setdefault(cell["keep"], []).append((cell["flops"] / cell["flops_in_front"], cell["tokens"]))
    texts = []
    for keep, pairs in said.items():
        shares, tokens = zip(*pairs, strict=True)
        texts.append(
            f"{keep:.0%}: {min(shares):.1%} to {max(shares):.1%} of these FLOPs, {min(tokens):.1f} to "
            f"{max(tokens):.1f} tokens a layer"
        )
    return f"Behind one in front, at {'; '.join(texts)}."


def _text(figure: dict) -> str:
    """Accuracy, its verdict against the control, and an arrow for that against a policy in front alone."""
    arrow = {" +": " ↑", " −": " ↓", "": ""}[verdict({"over_random": figure.get("over_front")})]
    return f"{cell_text(figure, verdict(figure))}{arrow}"


def _counts(cell: dict) -> str:
    """ "256, 139, 76, 41": what each layer reads; the last number holds for all behind."""
    return ", ".join(map(str, cell["counts"]))


def _in_front(result: dict, keep: float, row: str | None = None) -> list[dict]:
    """Cells of policies in front alone, with figures on the same questions."""
    return [c for c in result["rows"] if "few" in c and c["keep"] == keep and row in (None, c["row"])]


def _asked(result: dict, rows: dict[str, list[dict]]) -> str:
    cell = next(iter(rows.values()))[0]
    asked = " and ".join(f"{figure['asked']:,} ({name})" for name, figure in cell["sets"].items())
    return (
        f"Accuracy in % on {asked} questions, ± half the 95 % interval. Tokens by layer (or in brackets): what layers "
        "0, 1, ... read, the last number for all behind. + better, − worse than random tokens at the same layers, "
        "counts and positions (compact: what is left is renumbered, as `pyramiddrop`, `sparsevlm` 1.5 and `adaptinfer` "
        "do); ↑ better, ↓ worse than the policy in front alone, on the same questions."
    )


def plot(result: dict, path: Path) -> None:
    """Accuracy over the budget: a line of panels per set, a panel per policy in front; alone at half of the tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fronts = rows_by_front(result)
    alone = fronts.pop(ALONE, {})
    figure, axes = plt.subplots(
        len(result["sets"]), len(fronts), figsize=(6.4 * len(fronts), 4.2 * len(result["sets"])), sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for line, name in zip(axes, result["sets"], strict=True):
        for axis, (front, rows) in zip(line, fronts.items(), strict=True):
            colors, lines = cycle(COLORS), cycle(("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1))))
            keeps = sorted({cell["keep"] for own in [*rows.values(), *alone.values()] for cell in own}, reverse=True)
            y = [100 * _in_front(result, keep, front)[0]["few"][name]["accuracy"] for keep in keeps]
            axis.plot(range(len(keeps)), y, color=DARK, linewidth=2.5, label="the one in front, alone")
            for row, own in rows.items():
                cells = [*alone.get(row, []), *own]
                x = [keeps.index(cell["keep"]) for cell in cells]
                y = [100 * cell["sets"][name]["accuracy"] for cell in cells]
                control = "over_random" not in cells[0]["against"]
                style = {"color": GRAY, "linestyle": next(lines)} if control else {"color": next(colors), "marker": "o"}
                axis.plot(x, y, linewidth=1.4, markersize=4, label=row, **style)
            axis.axhline(100 * dense_cell(result)["sets"][name]["accuracy"], color=DARK, linestyle="--", linewidth=0.8)
            axis.set_xticks(range(len(keeps)), [_tick(keep, alone) for keep in keeps])
            axis.grid(color="#d0d7de", linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
        asked = next(iter(alone.values()))[0]["sets"][name]["asked"]
        line[0].set_ylabel(f"accuracy on {asked:,} questions\n({name}), %")
    for axis, front in zip(axes[0], fronts, strict=True):
        axis.set_title(f"behind {front}", fontsize=11, loc="left", fontweight="bold")
    axes[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    save(figure, path)


def _tick(keep: float, alone: dict[str, list[dict]]) -> str:
    inside = {cell["keep"] for own in alone.values() for cell in own}
    return f"{keep:.0%}\ninside alone" if keep in inside else f"{keep:.0%}\nequal FLOPs"

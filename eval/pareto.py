"""Tables and plots of what `tokenprune.eval.accuracy` measured."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

DENSE, RANDOM = "dense", "random"
# What a method goes by, for the panels of the plots; a policy that is not named here is drawn with the baselines
GROUPS = {
    "diversity": ("cdpruner", "cdpruner-openvino", "divprune", "dart", "mmtok", "zooprune"),
    "attention and other scores": ("fastervlm", "vispruner", "hiprune", "holov", "norm", "trim"),
    "merging": ("visionzip", "prumerge", "prumerge_plus", "pool"),
    "baselines": (RANDOM, "uniform", "resize"),
}
COLORS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#1b7c83", "#e85aad", "#24292f", "#953800", "#57ab5a")
COLORS += ("#54aeff", "#a475f9")
GRAY, DARK = "#8c959f", "#1f2328"


def write(result: dict, folder: Path) -> str:
    """accuracy.md and the plots in `folder`; returns the Markdown without the tables by kind."""
    from . import pareto_inside

    text = f"{tables(result)}\n{pareto_inside.tables(result)}\n{times_table(result)}"
    (folder / "accuracy.md").write_text("\n".join([text, *kind_tables(result)]))
    if by_row(result):
        plot(result, folder / "accuracy.png")
        plot_times(result, folder / "accuracy-time.png")
    if pareto_inside.rows_by_front(result):
        pareto_inside.plot(result, folder / "accuracy-inside.png")
    return text


def group_of(policy: str) -> str:
    return next((group for group, names in GROUPS.items() if policy in names), "baselines")


def by_row(result: dict) -> dict[str, list[dict]]:
    """Row -> its cells, largest budget first; rows in the order of their groups, without the dense one."""
    rows: dict[str, list[dict]] = {}
    for cell in sorted(result["rows"], key=lambda cell: -cell["keep"]):
        if cell["row"] != DENSE and "against" not in cell:
            rows.setdefault(cell["row"], []).append(cell)
    order = list(GROUPS)
    return dict(sorted(rows.items(), key=lambda item: order.index(group_of(item[1][0]["policy"]))))


def dense_cell(result: dict) -> dict:
    return next(cell for cell in result["rows"] if cell["row"] == DENSE)


def verdict(figure: dict) -> str:
    """ "+" or "−" where the interval of the paired difference to random lies on one side of zero."""
    over = figure.get("over_random")
    if over is None or over["low"] <= 0 <= over["high"]:
        return ""
    return " +" if over["low"] > 0 else " −"


def _half(figure: dict) -> float:
    return (figure["high"] - figure["low"]) / 2


def cell_text(figure: dict, mark: str) -> str:
    return f"{100 * figure['accuracy']:.1f} ± {100 * _half(figure):.1f}{mark}"


def _cell(figure: dict) -> str:
    return cell_text(figure, verdict(figure))


def tables(result: dict) -> str:
    """Accuracy by policy and budget, a table per set."""
    dense, rows, lines = dense_cell(result), by_row(result), []
    cells = next(iter(rows.values()), [])
    total = dense["tokens"]
    for name, facts in result["sets"].items():
        figure = dense["sets"][name]
        heads = [f"{cell['keep']:.0%} ({round(cell['keep'] * total)})" for cell in cells]
        lines += [f"| {name} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        best = {
            cell["keep"]: max(other["sets"][name]["accuracy"] for others in rows.values() for other in others
                              if other["keep"] == cell["keep"])
            for cell in cells
        }  # fmt: skip
        for row, own in rows.items():
            texts = [
                f"**{_cell(cell['sets'][name])}**"
                if cell["sets"][name]["accuracy"] == best[cell["keep"]]
                else _cell(cell["sets"][name])
                for cell in own
            ]
            lines.append(f"| {row} | " + " | ".join(texts) + " |")
        about = "" if facts["pictures"] == facts["asked"] else f" about {facts['pictures']:,} pictures"
        lines += [
            "",
            f"Accuracy in % on {facts['asked']:,} questions{about} ({name}), ± half the 95 % interval. Dense ({total} "
            f"tokens): {100 * figure['accuracy']:.2f}; always the commonest answer of each kind: "
            f"{100 * facts['majority'] / facts['asked']:.1f}.",
            "",
        ]
    seeds = max((len(cell["right"]) for cell in result["rows"]), default=1)
    lines.append(
        f"**Bold**: highest. + better, − worse than `random` (mean of {seeds} seeds) on the same questions: the 95 % "
        "interval of the paired difference leaves out zero (not corrected for the number of comparisons)."
    )
    return "\n".join(lines) + "\n"


def kind_tables(result: dict) -> list[str]:
    """Accuracy by kind of question, a table per set and budget."""
    found = []
    for name, facts in result["sets"].items():
        kinds = list(facts["by_kind"])
        for keep in sorted({cell["keep"] for cell in result["rows"]} - {1.0}, reverse=True):
            heads = [f"{kind} ({facts['by_kind'][kind]})" for kind in kinds]
            lines = [f"| {name}, {keep:.0%} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(kinds)]
            for cell in [dense_cell(result)] + [c for own in by_row(result).values() for c in own if c["keep"] == keep]:
                figures = [cell["sets"][name]["by_kind"][kind] for kind in kinds]
                texts = (f"{100 * one['accuracy']:.0f} ± {100 * _half(one):.0f}" for one in figures)
                lines.append(f"| {cell['row']} | " + " | ".join(texts) + " |")
            found.append("\n".join(lines) + "\n")
    return found


def times_table(result: dict) -> str:
    """Time as a multiple of the dense model's, by policy, budget and batch size."""
    rows = by_row(result)
    parts = next((list(cell["times"]) for own in rows.values() for cell in own), [])
    if not parts:
        return ""
    lines = [
        f"| time / dense: {' · '.join(parts)} | " + " | ".join(f"{c['keep']:.0%}" for c in next(iter(rows.values())))
    ]
    lines = [lines[0] + " |", "|---|" + "---:|" * len(next(iter(rows.values())))]
    for row, own in rows.items():
        lines.append(f"| {row} | " + " | ".join(" · ".join(f"{c['times'][p]:.2f}" for p in parts) for c in own) + " |")
    note = (
        f"Median over rounds in which dense and pruned take turns, on {result['machine']}. prefill: the language "
        "model with the selection, without the vision tower; forward: from the pixels on, with what is looked up in "
        "the tower."
    )
    return "\n".join([*lines, "", note]) + "\n"


def plot(result: dict, path: Path) -> None:
    """Accuracy over visual tokens kept: a line of panels per set, a panel per group, random as a band in each."""
    rows, total = by_row(result), dense_cell(result)["tokens"]
    budgets = sorted({cell["keep"] for own in rows.values() for cell in own}, reverse=True)
    ticks = [keep * total for keep in budgets]
    least = min(cell["tokens"] for own in rows.values() for cell in own)
    figure, axes = _panels(len(result["sets"]), 3.9)
    for line, name in zip(axes, result["sets"], strict=True):
        for axis, group in zip(line, GROUPS, strict=True):
            _frame(axis, result, name)
            labels = []
            for row, color in _colors(rows, group).items():
                figures = [cell["sets"][name] for cell in rows[row]]
                x, y = [cell["tokens"] for cell in rows[row]], [100 * one["accuracy"] for one in figures]
                low, high = ([100 * one[side] for one in figures] for side in ("low", "high"))
                labels.append((y[-1], row, color))
                if row == RANDOM:
                    axis.fill_between(x, low, high, color=color, alpha=0.3, linewidth=0)
                    axis.plot(x, y, color=color, linewidth=1.5)
                    continue
                bars = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
                axis.errorbar(x, y, yerr=bars, color=color, marker="o", markersize=3.5, linewidth=1.5, capsize=2)
            axis.set_xscale("log")
            axis.set_xlim(ticks[0] * 1.15, least * 0.24)
            label(axis, labels, least)
            axis.set_xticks(ticks, [f"{round(tick)}\n{keep:.0%}" for tick, keep in zip(ticks, budgets, strict=True)])
            axis.minorticks_off()
        line[0].set_ylabel(f"accuracy on {result['sets'][name]['asked']:,} questions\n({name}), %")
    for axis in axes[-1]:
        axis.set_xlabel(f"visual tokens kept, of {total}")
    save(figure, path)


def plot_times(result: dict, path: Path) -> None:
    """Accuracy on the first set over time as a multiple of the dense model's: a line of panels per part, at the largest
    batch size; behind each the frontier of all methods, dense included."""
    rows, name = by_row(result), next(iter(result["sets"]))
    cells = [cell for own in rows.values() for cell in own]
    batch = max((int(part.rpartition(" ")[2]) for part in cells[0]["times"]), default=0)
    parts = [part for part in cells[0]["times"] if part.endswith(f" {batch}")]
    if not parts:
        return
    dense = dense_cell(result)["sets"][name]["accuracy"]
    figure, axes = _panels(len(parts), 3.6)
    for line, part in zip(axes, parts, strict=True):
        front = frontier([(cell["times"][part], cell["sets"][name]["accuracy"]) for cell in cells] + [(1.0, dense)])
        times = [1.0, *(cell["times"][part] for cell in cells)]
        left, right = min(times) / 1.15, max(times) * 1.15
        ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if left <= tick <= right]
        for axis, group in zip(line, GROUPS, strict=True):
            _frame(axis, result, name)
            axis.axvline(1, color=DARK, linestyle="--", linewidth=0.9)
            steps = [*front, (right, front[-1][1])]
            axis.step(*_columns(steps), where="post", color=GRAY, linewidth=5, alpha=0.3, label="frontier of all")
            for row, color in _colors(rows, group).items():
                points = [(cell["times"][part], cell["sets"][name]["accuracy"]) for cell in rows[row]]
                axis.plot(*_columns(points), color=color, marker="o", markersize=4, linewidth=1.2, label=row)
            axis.set_xscale("log")
            axis.set_xlim(left, right)
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_xlabel(f"time / dense: {part}")
        line[0].set_ylabel(f"accuracy ({name}), %")
    for axis in axes[-1]:
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2))
    save(figure, path)


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [100 * y for _, y in points]


def _panels(lines: int, height: float):
    """A figure with a column of panels per group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (4.1 * len(GROUPS), height * lines)
    figure, axes = plt.subplots(lines, len(GROUPS), figsize=size, sharey="row", squeeze=False, layout="constrained")
    for axis, group in zip(axes[0], GROUPS, strict=True):
        axis.set_title(group, fontsize=11, loc="left", fontweight="bold")
    return figure, axes


def save(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colors(rows: dict[str, list[dict]], group: str) -> dict[str, str]:
    """Row -> color, the same in both plots; random is gray and belongs to every group."""
    members = [row for row, own in rows.items() if group_of(own[0]["policy"]) == group and row != RANDOM]
    return {row: GRAY for row in rows if row == RANDOM} | dict(zip(members, cycle(COLORS)))


def _frame(axis, result: dict, name: str) -> None:
    """Grid, the dense model's accuracy and that of not looking."""
    facts = result["sets"][name]
    for value, style in (
        (dense_cell(result)["sets"][name]["accuracy"], "--"),
        (facts["majority"] / facts["asked"], ":"),
    ):
        axis.axhline(100 * value, color=DARK, linestyle=style, linewidth=0.9)
    axis.grid(color="#d0d7de", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylim(0, 103)


def label(axis, labels: list[tuple[float, str, str]], last: float) -> None:
    """Names behind the last points, moved apart where they would lie on each other."""
    gap, low, high = 6.0, 2.0, 99.0
    places: list[float] = []
    for y, _, _ in sorted(labels):
        places.append(max(y, places[-1] + gap if places else low))
    above = high
    for i in reversed(range(len(places))):
        places[i] = above = min(places[i], above)
        above -= gap
    for place, (y, name, color) in zip(places, sorted(labels), strict=True):
        axis.plot([last * 0.96, last * 0.85], [y, place], color=color, linewidth=0.6)
        axis.text(last * 0.82, place, name, color=color, fontsize=8, va="center")


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (time, accuracy) points that none beats in both, fastest first."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return found

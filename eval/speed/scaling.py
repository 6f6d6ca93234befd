"""How the time of selections grows: `python -m tokenprune.eval.speed.scaling [--axis N] [--limit 30]`.

Every selector and the main policies for pictures against the number of tokens, of those kept, and of units at once;
policies for videos against frames. A run goes on from what the folder has of the same machine and settings; --fresh
starts anew. Written after every size: JSON, Markdown with the exponents, and a plot.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ... import get_policy
from ...errors import PolicyError
from ..files import at_least, read, replaced, shown, written
from ..video_time import SIDE, Size, footage
from . import scaling_plot
from .data import SELECTORS, features, projector_policies, ready, selections, visual_tokens
from .events import seconds
from .selection import where

WIDTH, SHARE, FEW = 1024, 8, 64
POLICIES = ("cdpruner", "divprune", "dart", "mmtok", "holov", "visionzip", "vispruner")
ROUNDS, ENOUGH, LONG = 5, 2.0, 5.0  # calls; seconds of them together; seconds of one that is made once
STEEPEST = 4  # times the time at twice the size: what an exponent of 2 gives
FITTED = 4  # sizes down to a quarter of the largest


@dataclass(frozen=True)
class Axis:
    """What grows, and the sizes: each is (x, units, tokens of a unit, kept of them)."""

    name: str
    label: str
    sizes: tuple[tuple[int, int, int, int], ...]
    video: bool = False


SIZES = tuple(2**i for i in range(8, 15))
AXES = {
    axis.name: axis
    for axis in (
        Axis("N", f"tokens N, k = N / {SHARE}", tuple((n, 1, n, n // SHARE) for n in SIZES)),
        Axis("N at few", f"tokens N, k = {FEW}", tuple((n, 1, n, FEW) for n in SIZES)),
        Axis("k", "tokens kept k, N = 4,096", tuple((2**i, 1, 4096, 2**i) for i in range(4, 12))),
        Axis("units", "units at once, 576 -> 64 each", tuple((2**i, 2**i, 576, 64) for i in range(5))),
        Axis(
            "frames", f"frames of {SIDE**2} tokens, k = N / {SHARE}",
            tuple((2**i, 1, 2**i * SIDE**2, 2**i * SIDE**2 // SHARE) for i in range(3, 8)), video=True,
        ),
    )
}  # fmt: skip


def calls(axis: Axis, size: tuple[int, int, int, int], width: int) -> dict[str, Callable[[], Any]]:
    """Name -> a selection of that size. What it is given is made before."""
    x, units, n, k = size
    if axis.video:
        tokens = footage(Size(frames=x, width=width))
        tokens = replace(tokens, features=tokens.features.float())
        policies = {name: make(k) for name, make in projector_policies("video").items()}
    else:
        tokens = visual_tokens(units, n, width)
        policies = {name: get_policy(name)(keep=k) for name in POLICIES}
    found = {name: partial(policy.select, ready(policy, tokens), k) for name, policy in policies.items()}
    if axis.video:
        return found
    own = features(units, n, width)
    return {selector: selections(selector, own, k)["public"] for selector in SELECTORS} | found


def timed(call: Callable[[], Any]) -> tuple[float, int]:
    """Median seconds, and of how many calls: of one that takes long, its first; else of some behind the first."""
    first = seconds(call, "cpu")
    if first > LONG:
        return first, 1
    several: list[float] = []
    while len(several) < ROUNDS and sum(several) < ENOUGH:
        several.append(seconds(call, "cpu"))
    return statistics.median(several), len(several)


@torch.inference_mode()
def rows(axis: Axis, width: int, limit: float, known: dict[str, dict[int, dict]]) -> Iterator[dict[str, Any]]:
    """A row for every size and selection, those of `known` (name -> x -> row) as they are.

    A selection that could take longer than `limit` seconds at the next size, or that cannot answer, goes no further.
    """
    ended: set[str] = set()
    for size in axis.sizes:
        x, units, n, k = size
        tried: dict[str, Callable[[], Any]] | None = None
        names = projector_policies("video") if axis.video else (*SELECTORS, *POLICIES)
        for name in names:
            if name in ended:
                continue
            row = known.get(name, {}).get(x)
            if row is None:
                tried = calls(axis, size, width) if tried is None else tried
                try:
                    took, rounds = timed(tried[name])
                except PolicyError:
                    ended.add(name)
                    continue
                row = {"axis": axis.name, "what": name, "x": x, "units": units, "n": n, "k": k,
                       "seconds": float(f"{took:.4g}"), "rounds": rounds}  # fmt: skip
            if STEEPEST * row["seconds"] > limit:
                ended.add(name)
            yield row


def exponent(points: Sequence[tuple[float, float]]) -> tuple[float, list[float]] | None:
    """Slope of log seconds over log size, by least squares, and the sizes it is of: those of at least a quarter of the
    largest. None of fewer than two points."""
    largest = max((x for x, _ in points), default=0)
    some = sorted((x, y) for x, y in points if FITTED * x >= largest)
    if len(some) < 2:
        return None
    logs = [(math.log(x), math.log(y)) for x, y in some]
    fitted = statistics.linear_regression(*zip(*logs, strict=True))
    return round(fitted.slope, 3), [x for x, _ in some]


def exponents(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for every axis and selection that has a slope."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in found:
        lines.setdefault((row["axis"], row["what"]), []).append((row["x"], row["seconds"]))
    slopes = {key: exponent(points) for key, points in lines.items()}
    return [
        {"axis": axis, "what": what, "exponent": slope[0], "sizes": slope[1]}
        for (axis, what), slope in slopes.items()
        if slope is not None
    ]


def table(result: dict[str, Any]) -> str:
    """Markdown: for each axis the time at its largest size, and the exponent."""
    slopes = {(one["axis"], one["what"]): one for one in result["exponents"]}
    lines = []
    for axis in AXES.values():
        mine = [row for row in result["rows"] if row["axis"] == axis.name]
        if not mine:
            continue
        lines += [f"| {axis.label} | exponent | fitted on | largest | ms there |", "|---|---:|---|---:|---:|"]
        for what in dict.fromkeys(row["what"] for row in mine):
            last = max((row for row in mine if row["what"] == what), key=lambda row: row["x"])
            slope = slopes.get((axis.name, what))
            fit = f"{slope['exponent']:.2f} | {slope['sizes'][0]:,} to {slope['sizes'][-1]:,}" if slope else "|"
            lines.append(f"| {what} | {fit} | {last['x']:,} | {1000 * last['seconds']:,.2f} |")
        lines.append("")
    lines += [
        f"Time is proportional to size ^ exponent: least squares of the logarithms over sizes from a quarter of the "
        f"largest on. float32 of width {result['width']:,} on {result['device']}; medians of up to {ROUNDS} calls, "
        f"one where it takes above {LONG:g} s. Where the next size could take above {result['limit']:g} s a line ends.",
        "",
        f"`{result['command']}`",
    ]
    return "\n".join(lines) + "\n"


def reusable(earlier: dict[str, Any] | None, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier result of the same machine, versions and settings."""
    same = earlier is not None and all(earlier.get(name) == value for name, value in facts.items())
    return earlier["rows"] if same else []


def measure(names: Sequence[str], width: int, limit: float, facts: dict[str, Any], out: Path, fresh: bool) -> dict:
    """Measures these axes, writes after every row that is new, and answers all."""
    console, file = Console(stderr=True), out / "scaling.json"
    kept = [] if fresh else reusable(read(file), facts)
    others = [row for row in kept if row["axis"] not in names]
    found: list[dict[str, Any]] = []
    for name in names:
        known: dict[str, dict[int, dict]] = {}
        for row in kept:
            if row["axis"] == name:
                known.setdefault(row["what"], {})[row["x"]] = row
        for row in rows(AXES[name], width, limit, known):
            found.append(row)
            if row not in kept:
                console.print(f"{name} {row['x']:,}: {row['what']} {1000 * row['seconds']:.2f} ms", highlight=False)
                rest = [one for one in kept if one["axis"] in names and one not in found]
                replaced(file, written(_result(facts, others + found + rest)))
    return _result(facts, others + found)


def _result(facts: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    order = list(AXES)
    found = sorted(found, key=lambda row: order.index(row["axis"]))
    return {**facts, "exponents": exponents(found), "rows": found}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.speed.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--axis", action="append", choices=AXES, help="only this one; may be repeated")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the features")
    parser.add_argument("--limit", type=int, default=30, help="seconds that one selection may be expected to take")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is there")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of scaling.*")
    options = parser.parse_args(given)
    at_least(parser, options, width=1, limit=1, threads=1)
    torch.set_num_threads(options.threads)
    words = {"width": options.width, "limit": options.limit, "threads": options.threads}
    command = ["python", "-m", "tokenprune.eval.speed.scaling"]
    command += [text for name, value in words.items() for text in (f"--{name}", str(value))]
    facts = {**where("cpu"), "width": options.width, "limit": options.limit, "command": shlex.join(command)}
    result = measure(options.axis or list(AXES), options.width, options.limit, facts, options.out, options.fresh)
    text = table(result)
    replaced(options.out / "scaling.json", written(result))
    replaced(options.out / "scaling.md", text)
    scaling_plot.draw(result, {name: axis.label for name, axis in AXES.items()}, options.out / "scaling.png")
    shown(text)


if __name__ == "__main__":
    main()

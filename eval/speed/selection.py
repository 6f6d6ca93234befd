"""Greedy selections beside the plain loop: `python -m tokenprune.eval.speed.selection [--device cuda] [--rounds 9]`.

In every round the public function and the plain one (`tokenprune.ops.plain`, step by step in torch) answer the same
question once each, from made features (`data.py`). Whether they pick the same tokens is told, too, and
the extra memory of every selection among 16,384 tokens.
"""

from __future__ import annotations

import argparse
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from operator import truediv
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ...checkpoints import usable
from ..bench.build import DTYPES, default_dtype
from ..bench.measure import middle
from ..clock import in_turns, machine
from ..files import at_least, indented, publish
from . import memory
from .data import SELECTORS, features, selections
from .events import launches, seconds, waits
from .goals import Goal, verdicts


@dataclass(frozen=True)
class Case:
    """k of n tokens in each of so many units, and the goals on a GPU and on a CPU, the same for every selector."""

    units: int
    n: int
    k: int
    cuda: tuple[Goal, ...] = ()
    cpu: tuple[Goal, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.units} x {self.n:,} -> {self.k}" if self.units > 1 else f"{self.n:,} -> {self.k}"


SAME = Goal("differing", "<=", 0, " differing")
WIDTH = 4096
CASES = (
    Case(
        1, 576, 64,
        cuda=(Goal("public_ms", "<=", 0.25, " ms"), Goal("speedup", ">=", 10, "x")),
        cpu=(Goal("speedup", ">=", 3, "x"),),
    ),
    Case(5, 576, 128, cuda=(Goal("public_ms", "<=", 1.0, " ms"),)),
    Case(1, 1296, 143),
    Case(1, 2928, 320),
)  # fmt: skip


def differing(some: Tensor, others: Tensor, n: int) -> int:
    """Picks of [G, k] that are not among the others of their unit."""
    taken = torch.zeros(len(some), n, dtype=torch.bool, device=others.device).scatter_(1, others, True)
    return int((~taken.gather(1, some)).sum())


@torch.inference_mode()
def measure(cases: Sequence[Case], *, device: str, dtype: str, width: int, rounds: int, console: Console) -> list[dict]:
    """A row for every case and selector. Times are milliseconds, as [median, lowest, highest] over the rounds."""
    rows = []
    for case, selector in track([(c, s) for c in cases for s in SELECTORS], "selections", console=console):
        x = features(case.units, case.n, width, device=device).to(DTYPES[dtype])
        calls = selections(selector, x, case.k)
        answers = {name: call() for name, call in calls.items()}
        took = in_turns({name: partial(seconds, call, device) for name, call in calls.items()}, rounds)
        row: dict[str, Any] = {"selector": selector, "units": case.units, "n": case.n, "k": case.k, "case": case.text}
        for name, values in took.items():
            row[f"{name}_ms"] = [round(1000 * value, 4) for value in middle(values)]
        row["speedup"] = [round(value, 3) for value in middle(list(map(truediv, took["plain"], took["public"])))]
        row["differing"] = differing(answers["public"], answers["plain"], case.n)
        if device.startswith("cuda"):
            row |= _of_the_device(calls)
        own = case.cuda if device.startswith("cuda") else case.cpu
        rows.append(row | {"goals": [goal.of(row) for goal in (*own, SAME)]})
    return rows


def _of_the_device(calls: dict[str, Any]) -> dict[str, Any]:
    """Kernels launched, and where the host waited."""
    found: dict[str, Any] = {f"{name}_launches": launches(call) for name, call in calls.items()}
    with waits() as places:
        calls["public"]()
    return found | {"waits": len(places), "waits_at": sorted(set(places))}


def where(device: str) -> dict[str, Any]:
    """The device and the versions that figures are of."""
    cuda = device.startswith("cuda")
    versions = {
        "torch": torch.__version__,
        "tokenprune": version("tokenprune-vlm"),
        "python": platform.python_version(),
    }
    if cuda:
        versions |= {"cuda": torch.version.cuda, "triton": version("triton")}
    return {"device": torch.cuda.get_device_name() if cuda else machine(), "versions": versions}


def table(result: dict[str, Any]) -> str:
    """Markdown: speeds, then memory."""
    rows = result["rows"]
    cuda = any("waits" in row for row in rows)
    more = " launches, plain | launches | waits |" if cuda else ""
    lines = [f"| selection | k of n | plain loop, ms | public, ms | times faster | differing picks |{more} goals |"]
    lines.append("|---|---|---:|---:|---:|---:|" + ("---:|---:|---:|" if cuda else "") + "---|")
    for row in rows:
        texts = [
            row["selector"],
            row["case"],
            _range(row["plain_ms"]),
            _range(row["public_ms"]),
            _range(row["speedup"]),
        ]
        texts.append(str(row["differing"]))
        texts += [str(row[name]) for name in ("plain_launches", "public_launches", "waits")] if cuda else []
        lines.append("| " + " | ".join([*texts, verdicts(row["goals"])]) + " |")
    lines += [
        "",
        f"Median (lowest to highest) of {result['rounds']} rounds in which both take turns, in {result['dtype']} of "
        f"width {result['width']:,}, similarities and first token included, on {result['device']}. Features are made: "
        "a common direction, 32 clusters and noise; the DPP's quality is a Gaussian between 0 and 1. For max-min and "
        "facility location, of which the same order is asked, the DPP's goals stand.",
        "",
    ]
    if result["memory"]:
        lines += [*_memory(result), ""]
    return "\n".join([*lines, f"`{result['command']}`"]) + "\n"


def _memory(result: dict[str, Any]) -> list[str]:
    lines = ["| selection | extra memory, MiB | goal |", "|---|---:|---|"]
    for row in sorted(result["memory"], key=lambda row: -row.get("peak_mib", 0)):
        peak = f"{row['peak_mib']:.1f}" if "peak_mib" in row else "asks for another count"
        lines.append(f"| {row['what']} | {peak} | {verdicts(row['goals'])} |")
    n, k, width = (result["memory_of"][name] for name in ("n", "k", "width"))
    return [*lines, "", f"At most held beside the inputs, answer included: {k} of {n:,} tokens of width {width}."]


def _range(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} ({values[1]:.4g} to {values[2]:.4g})"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.speed.selection", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="of the features")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the features")
    parser.add_argument("--rounds", type=int, default=9, help="of every measurement")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--tokens", type=int, default=memory.TOKENS, help="to weigh; 0 leaves memory out")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of selection_speed.*")
    options = parser.parse_args(given)
    at_least(parser, options, width=1, rounds=1, threads=1, tokens=0)
    if options.tokens % 1024:
        parser.error(f"--tokens {options.tokens} is no multiple of 1024: videos are weighed in frames of 32 x 32")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and torch finds none: use cpu")
    return options


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(options.threads)
    device, dtype = usable(options.device), default_dtype(options.dtype, options.device)
    sizes = {"n": options.tokens, "k": options.tokens // 32, "width": memory.WIDTH}
    words = {"device": device, "dtype": dtype, "width": options.width, "rounds": options.rounds,
             "threads": options.threads, "tokens": options.tokens}  # fmt: skip
    result = {
        **where(device), "dtype": dtype, "width": options.width, "rounds": options.rounds, "memory_of": sizes,
        "command": shlex.join(["python", "-m", "tokenprune.eval.speed.selection"]
                              + [text for name, value in words.items() for text in (f"--{name}", str(value))]),
        "rows": measure(CASES, device=device, dtype=dtype, width=options.width, rounds=options.rounds,
                        console=Console(stderr=True)),
        "memory": memory.measure(device, sizes["n"], sizes["k"]) if options.tokens else [],
    }  # fmt: skip
    publish(options.out, "selection_speed" + (f"_{device}" if device != "cpu" else ""), indented(result), table(result))


if __name__ == "__main__":
    main()

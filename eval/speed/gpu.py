"""The whole GPU part of the speed figures: `python -m tokenprune.eval.speed.gpu --out eval/results/gpu [--minutes 10]`.

Parts follow each other, each a process of its own with a share of the time; what one does not use the next ones have.
Every part writes its files as it goes, and gpu.json says after each what became of it. A part that fails or runs out of
time stops nothing, and the exit code is 1 then. Needs a CUDA device with about 40 GB for batches of 8.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError, TokenPruneError
from ..bench.command import writable
from ..files import indented, publish, read, replaced
from . import bench_goals
from .policies import policies
from .selection import where

SHAPES = {"llava-next-7b": 320, "llava-1.5-7b": 64, "qwen2.5-vl-7b": 143}  # tokens kept, a ninth
MERGED = {"llava-next-7b": "tome(r=12)+cdpruner(keep=320)"}
BATCHES, ROUNDS, NEW, TEXT = (1, 8), 3, 8, 64
USER_ERROR = 2


@dataclass(frozen=True)
class Part:
    """A command of this Python, and the minutes of ten that it may take."""

    name: str
    minutes: float
    words: tuple[str, ...]


def parts() -> tuple[Part, ...]:
    """In the order of importance. Each takes --out behind its words."""
    shapes = tuple(word for name in SHAPES for word in ("--shape", name))
    cuda, here = ("--device", "cuda"), f"{__package__}."
    return (
        Part("selection", 1.0, (f"{here}selection", *cuda, "--rounds", "30")),
        Part("bench llava-next-7b", 2.6, _bench("llava-next-7b")),
        Part("bench llava-1.5-7b", 1.8, _bench("llava-1.5-7b")),
        Part("bench qwen2.5-vl-7b", 2.1, _bench("qwen2.5-vl-7b")),
        Part("waits", 0.8, (f"{here}waits", *shapes)),
        Part("rows", 0.8, (f"{here}rows", *cuda, "--scale", "1", "--rounds", "30")),
        Part("vision", 0.9, (
            "tokenprune.eval.vision_speed", *cuda, "--shape", "CLIP-L/336", "--library", "hf", "--dtype", "bfloat16",
            "--batch", "32", "--rounds", "5",
        )),
    )  # fmt: skip


def _bench(shape: str) -> tuple[str, ...]:
    """Every policy without training at one budget, and where it is asked for, one with a merge in the tower."""
    names = policies() + ([MERGED[shape]] if shape in MERGED else [])
    options = [("shape", shape), *(("policy", name) for name in names), *(("batch", batch) for batch in BATCHES)]
    options += [("keep", SHAPES[shape]), ("dtype", "bfloat16"), ("device", "cuda"), ("rounds", ROUNDS), ("new", NEW)]
    options += [("text", TEXT)]
    words = [word for name, value in options for word in (f"--{name}", str(value))]
    return (__package__.partition(".")[0], "bench", *words, "--fresh")


def ran(part: Part, out: Path, limit: float) -> dict[str, Any]:
    """What became of it: "done", "failed", or "out of time" after `limit` seconds, with the last line it said."""
    command = [sys.executable, "-m", *part.words, "--out", str(out)]
    begun = time.perf_counter()
    try:
        ended = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=limit, check=False
        )
        state, said = "done" if ended.returncode == 0 else "failed", ended.stderr
    except subprocess.TimeoutExpired as error:
        said = error.stderr or ""  # of bytes, although text was asked for
        state, said = "out of time", said if isinstance(said, str) else said.decode(errors="replace")
    spent = round(time.perf_counter() - begun, 1)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    row = {"part": part.name, "state": state, "seconds": spent, "limit": round(limit, 1)}
    return row | ({"said": lines[-1]} if state != "done" and lines else {})


def run(tried: Sequence[Part], out: Path, minutes: float) -> list[dict[str, Any]]:
    """All parts; each ends by the time that its share and those before it make."""
    whole, shares, found = sum(part.minutes for part in tried), 0.0, []
    begun, started = time.perf_counter(), time.time()
    for part in tried:
        shares += part.minutes
        limit = 60 * minutes * shares / whole - (time.perf_counter() - begun)
        print(f"{part.name}: up to {limit:.0f} s", file=sys.stderr)
        found.append(ran(part, out, max(1.0, limit)))
        print(f"{part.name}: {found[-1]['state']} after {found[-1]['seconds']} s", file=sys.stderr)
        result = {**where("cuda"), "parts": found, "figures": figures(out, started)}
        replaced(out / "gpu.json", indented(result))
    publish(out, "gpu", indented(result), table(result))
    return found


def figures(out: Path, since: float) -> list[dict[str, Any]]:
    """Of the results of the bench that were written since then."""
    files = [file for shape in SHAPES if (file := out / f"bench_{shape}.json").exists()]
    results = [read(file) for file in files if file.stat().st_mtime >= since]
    return [one for result in results if result is not None for one in bench_goals.figures(result)]


def table(result: dict[str, Any]) -> str:
    """Markdown: what became of the parts, and the figures of the bench."""
    lines = ["| part | state | s | said |", "|---|---|---:|---|"]
    for row in result["parts"]:
        lines.append(f"| {row['part']} | {row['state']} | {row['seconds']:.0f} | {row.get('said', '')} |")
    text = "\n".join(lines) + "\n"
    return text + (f"\n{bench_goals.table(result['figures'])}" if result["figures"] else "")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.speed.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all files")
    parser.add_argument("--minutes", type=float, default=10.0, help="of all parts together")
    parser.add_argument("--part", action="append", choices=[p.name for p in parts()], help="only this; may be repeated")
    options = parser.parse_args(given)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g} is not above 0")
    try:
        if not torch.cuda.is_available():
            raise InputError(
                "device='cuda' is not there, and all of this is measured on it: run it on a machine with a GPU."
            )
        writable(options.out)
        found = run([p for p in parts() if p.name in (options.part or [p.name])], options.out, options.minutes)
    except TokenPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    if any(row["state"] != "done" for row in found):
        sys.exit(1)


if __name__ == "__main__":
    main()

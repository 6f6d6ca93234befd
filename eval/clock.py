"""What a policy costs, as a ratio to the dense model: measured in turns, so that both meet the same machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import shapes
from .asking import Batch, Way

# What is timed: the language model on encoded pictures, with the selection; and everything from the pixels on
PARTS = ("prefill", "forward")


def ratios(dense: Way, ways: Way, keeps: Sequence[float], batch: Batch, repeats: int) -> dict[float, dict[str, float]]:
    """keep -> part -> time as a multiple of the dense model's: median over rounds of the ratio within a round.

    "prefill" is the language model's, from encoded pictures to the first token, selection included and the vision
    tower left out; "forward" starts at the pixels, so that what a policy looks up in the tower counts, too.
    """
    parts = PARTS if shapes.takes_features(dense.model) else PARTS[1:]
    found: dict[float, dict[str, float]] = {keep: {} for keep in keeps}
    for part in parts:
        calls = {None: partial(_seconds, dense, part, 1.0, batch)}
        seconds = in_turns(calls | {keep: partial(_seconds, ways, part, keep, batch) for keep in keeps}, repeats)
        for keep in keeps:
            found[keep][part] = ratio(seconds[keep], seconds[None])
    return found


def in_turns(calls: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, list[float]]:
    """Seconds that each call answers, round by round. First calls, which pay for what later ones find ready, are left
    out."""
    found: dict[Any, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            seconds = call()
            if turn:
                found[name].append(seconds)
    return found


def ratio(some: list[float], whole: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(some, whole, strict=True))


def _seconds(way: Way, part: str, keep: float, batch: Batch) -> float:
    """One answer to the batch. Wrapping, and for "prefill" the encoding, is done before."""
    with way.at(keep, batch):
        arguments = way.encoded(batch, keep) if part == "prefill" else way.given(batch, keep)
        begun = time.perf_counter()
        way.words(arguments)
        return time.perf_counter() - begun


def machine() -> str:
    """Processor, cores and threads."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":")[::2] for line in info.read_text().splitlines())
        name = next((value.strip() for key, value in lines if key.strip() == "model name"), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"

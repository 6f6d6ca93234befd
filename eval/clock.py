"""What a policy costs, as a ratio to the dense model: measured in turns, so that both meet the same machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

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
    found: dict[float, dict[str, list[float]]] = {keep: {part: [] for part in parts} for keep in keeps}
    for part in parts:
        _seconds(dense, part, 1.0, batch)  # first calls pay for what later ones find ready
        for keep in keeps:
            _seconds(ways, part, keep, batch)
        for _ in range(repeats):
            whole = _seconds(dense, part, 1.0, batch)
            for keep in keeps:
                found[keep][part].append(_seconds(ways, part, keep, batch) / whole)
    return {keep: {part: statistics.median(values) for part, values in both.items()} for keep, both in found.items()}


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

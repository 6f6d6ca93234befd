"""What a call makes a CUDA device and its host do: kernels launched, and times the host waited for the device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Names of the runtime's and the driver's calls, of graphs and of Triton's kernels
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
SYNCHRONISING = "called a synchronizing"  # of torch's own warning


def seconds(call: Callable[[], Any], device: torch.device | str) -> float:
    """Of one call, until the device has done what it was given."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing
    wait()
    begun = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begun


def _nothing() -> None:
    pass


def launches(call: Callable[[], Any]) -> int:
    """Kernels (and graphs) that one call launches on a CUDA device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return sum(event.name.startswith(LAUNCHES) for event in seen.events())


@contextmanager
def waits() -> Iterator[list[str]]:
    """Within, every wait of the host for a CUDA device is noted, as the file and line that asked for it.

    Torch says so of copies and of tensors whose size is read; `torch.cuda.synchronize` is not counted. The list is
    filled behind the block.
    """
    places: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
            places += [f"{Path(w.filename).name}:{w.lineno}" for w in seen if SYNCHRONISING in str(w.message)]

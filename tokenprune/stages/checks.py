"""Questions to the device that are answered later."""

from __future__ import annotations

import torch
from torch import Tensor


def finite(x: Tensor) -> Tensor:
    """[...] bool: whether all numbers of the last dimension are finite. Much faster by extremes than one by one."""
    return torch.isfinite(x.amax(-1)) & torch.isfinite(x.amin(-1))  # NaN is the extreme of what holds it


class Checks:
    """Conditions that only the device knows.

    On a CPU they are checked at once. Elsewhere the answer is copied behind the computation and read when the forward
    is over, so that nothing waits in between.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Tensor, torch.cuda.Event | None, Exception]] = []

    def require(self, holds: Tensor, error: Exception) -> None:
        """The error is raised, here or by `close`, unless `holds`, a bool of no dimension, is True."""
        if holds.device.type == "cpu":
            if not bool(holds):
                raise error
            return
        answer = holds.to("cpu", non_blocking=holds.is_cuda)
        event = None
        if holds.is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(holds.device))
        self._open.append((answer, event, error))

    def close(self) -> None:
        """Raises the first error whose condition did not hold."""
        answers, self._open = self._open, []
        for answer, event, error in answers:
            if event is not None:
                event.synchronize()
            if not bool(answer):
                raise error

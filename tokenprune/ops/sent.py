"""From the host to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(values: Tensor | Sequence[Any], device: torch.device) -> Tensor:
    """On the device. What comes from the host is queued behind what the device still has to do."""
    values = values if isinstance(values, Tensor) else torch.tensor(values)
    return values.to(device, non_blocking=values.device.type == "cpu")

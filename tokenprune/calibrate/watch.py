"""A policy that looks and drops nothing, and the loop that shows it calibration prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..layers import Event, LayerTokens
from ..policies.layer import LayerPolicy
from ..tokens import Selection
from ..wrap import wrap

Sizes = list[tuple[int, int]]
# Arguments of a forward; with (width, height) of its pictures before the processor, in order, where these are known
Batch = Mapping[str, Any] | tuple[Mapping[str, Any], Sizes]


@dataclass(kw_only=True)
class Watch(LayerPolicy):
    """Scores tokens and keeps them all."""

    name: ClassVar[str] = "calibration"
    everywhere: ClassVar[bool] = True

    keep: int | float | None = 1.0

    def count(self, event: Event, total: int) -> int:
        return total

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        return Selection.subset(torch.arange(k, device=tokens.hidden.device).expand(tokens.shape[0], k))


def watch(model: Any, policy: Watch, batches: Iterable[Batch]) -> None:
    """One forward per batch, with the policy looking on."""
    with wrap(model, policy) as handle, torch.no_grad():
        for batch in batches:
            inputs, handle.image_sizes = batch if isinstance(batch, tuple) else (batch, None)
            model(**inputs)

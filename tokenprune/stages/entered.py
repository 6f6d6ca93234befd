"""Entering a layer for its queries and keys, without a trace."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError


class Seen(Exception):
    """The queries and keys were seen: the rest of the layer need not run."""


def enter(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Run a layer up to its attention, where a note must raise `Seen`. Its cache stays as it is."""
    cache = kwargs.get("past_key_values")
    if cache is not None:
        kwargs = {**kwargs, "past_key_values": Peek(cache)}
    with suppress(Seen):
        layer.forward(*args, **kwargs)  # not its hooks: they are for the pass that counts


class Peek:
    """A cache whose updates are answered and forgotten.

    Raises:
        UnsupportedModelError: a continued cache whose keys are not plain tensors.
    """

    def __init__(self, cache: Any):
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self._cache.get_query_offset(layer):
            return key, value
        own = self._cache.layers[layer]
        if not type(own).__name__.startswith("Dynamic"):
            raise UnsupportedModelError(
                f"past_key_values keeps earlier keys in a {type(own).__name__}, and the policy scores new images in "
                "the layer they leave, which is entered twice: use the default cache."
            )
        return torch.cat([own.keys, key], -2), torch.cat([own.values, value], -2)

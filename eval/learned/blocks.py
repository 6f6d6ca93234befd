"""Dropping whole blocks, as ShortGPT does: the control that needs no tokens to be chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from ...stages.layer_plan import attention_of


def most_alike(similarity: Sequence[float], share: float) -> list[int]:
    """round(share L) of L blocks, those whose output is most like their input (cosine), ascending."""
    ranked = sorted(range(len(similarity)), key=lambda i: -similarity[i])
    return sorted(ranked[: round(share * len(similarity))])


@contextmanager
def without(model: nn.Module, blocks: Sequence[int]) -> Iterator[None]:
    """The model without some blocks, at prompt and decode steps; whole again afterwards."""
    decoder = model.get_decoder()
    layers, depth = decoder.layers, decoder.config.num_hidden_layers
    left = [layer for i, layer in enumerate(layers) if i not in set(blocks)]
    decoder.layers, decoder.config.num_hidden_layers = nn.ModuleList(left), len(left)
    for i, layer in enumerate(left):
        attention_of(layer).layer_idx = i
    try:
        yield
    finally:
        decoder.layers, decoder.config.num_hidden_layers = layers, depth
        for i, layer in enumerate(layers):
            attention_of(layer).layer_idx = i

"""Which layers of a decoder are read and where tokens leave, by the policies' events."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModelError, UnsupportedPolicyError
from ..policies.layer import LayerPolicy
from .layer_call import Planned
from .layer_inputs import kind_of
from .parts import Parts

ATTENTION = ("self_attn", "attn", "attention", "mixer")
SOFTMAX = ("full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding")


def planned(parts: Parts, policies: list[LayerPolicy], positions: str | None) -> dict[int, list[Planned]]:
    """Layer -> events in front of it, in the order of the policies.

    Args:
        positions: for all policies, or None for each one's own; position ids of several axes keep what they are then.

    Raises:
        InvalidArgumentError: a layer that the decoder does not have.
        UnsupportedModelError: a decoder without a list of layers, or whose last layers read keys of one before a drop.
        UnsupportedPolicyError: a layer to be read that computes no softmax attention.
    """
    if not policies:
        return {}
    if (problem := parts.adapter.between_layers) is not None:
        raise UnsupportedModelError(
            f"model of the family {parts.adapter.model_type!r} cannot lose tokens inside the language model: "
            f"{problem}; use policies in front of it."
        )
    layers = getattr(parts.decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"model of the family {parts.adapter.model_type!r} has no list of decoder layers: use policies in front of "
            "the language model."
        )
    depth = min(len(layers), getattr(parts.decoder.config, "num_hidden_layers", len(layers)))
    reads = [reads_softmax(parts.decoder.config, i, layers[i]) for i in range(depth)]
    at: dict[int, list[Planned]] = {}
    for policy in policies:
        own = positions or ("original" if parts.several_axes else policy.positions)
        for event in policy.events(depth):
            _check_shared_keys(parts, event.drop, depth)
            enters, score = event.score == event.drop, None
            if event.score is not None:
                score = event.score
                while not reads[score] and not enters and score > 0:  # the nearest before it that can be read
                    score -= 1
                if not reads[score]:
                    possible = ", ".join(str(i) for i, fits in enumerate(reads) if fits) or "none"
                    raise UnsupportedPolicyError(
                        f"policy {policy.name!r} reads the attention of layer {event.score}, and that layer of "
                        f"{parts.adapter.model_type!r} computes none that can be read; these do: {possible}."
                    )
            at.setdefault(event.drop, []).append(Planned(policy, event, score, enters, own == "compact"))
    return at


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The attention module of a decoder layer."""
    return next((child for name in ATTENTION if (child := getattr(layer, name, None)) is not None), None)


def reads_softmax(config: Any, i: int, layer: nn.Module) -> bool:
    return hasattr(attention_of(layer), "config") and kind_of(config, i) in SOFTMAX


def _check_shared_keys(parts: Parts, drop: int, depth: int) -> None:
    """Layers that read the keys of another one need them as long as their own queries."""
    config = parts.decoder.config
    own = depth - (getattr(config, "num_kv_shared_layers", 0) or 0)
    if own == depth:
        return
    types = [kind_of(config, i) for i in range(depth)]
    sources = {kind: max(i for i in range(own) if types[i] == kind) for kind in set(types[own:depth])}
    last = min(sources.values())
    if drop > last:
        remedy = f"drop at layer {last} at the latest" if last else "use policies in front of the language model"
        raise UnsupportedModelError(
            f"visual tokens are to leave layer {drop}, and from layer {own} on {parts.adapter.model_type!r} reads the "
            f"keys of layer {last}, where all are there: {remedy}."
        )

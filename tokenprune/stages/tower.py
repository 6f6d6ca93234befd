"""Looking inside the vision tower without changing what it computes.

What the policies want is taken from the queries and keys that attention modules hand to their implementation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Features
from ..errors import UnsupportedPolicyError
from ..ops import attention_rows, join_heads, received_attention
from ..tokens import Tap
from .blocks import has_class_token, prefix_of, read_layers
from .hook import Hook
from .parts import Parts
from .tap import listen, scale_of

ATTENTION = re.compile(r"\.(\d+)\.(self_attn|attn|attention)$")


class TowerTaps:
    """Taps on the vision towers of one model.

    Args:
        parts: of the model.
        taps: what the policies need.
        current: the encoding that runs in this thread, or None.

    Raises:
        UnsupportedPolicyError: the tower has no such layer, no class token, or is not one that can be looked into.
    """

    def __init__(self, parts: Parts, taps: list[Tap], current: Callable[[], Features | None]):
        self._parts, self._current = parts, current
        self._at: list[tuple[nn.Module, nn.Module, list[Tap]]] = []  # attention, its block, what to note there
        self._undo: list[Callable[[], None]] = []
        self._prefix = 0
        self.expanded: Callable[[Tensor], Tensor] = lambda value: (
            value
        )  # over all patches, where the tower is shortened
        for path in parts.adapter.towers if taps else ():
            found = dict(parts.module(path).named_modules(prefix=path))
            layers = [name for name in found if ATTENTION.search(name)]
            has_class, self._prefix = has_class_token(found[path]), prefix_of(found[path])
            places: dict[int, list[Tap]] = {}
            for tap in taps:
                self._check(tap, has_class)
                places.setdefault(self._layer(tap, len(layers)), []).append(_settled(tap, has_class))
            for i, wanted in places.items():
                name = layers[i]
                self._at.append((found[name], found[name.rpartition(".")[0]], wanted))
        if taps and not self._at:
            raise UnsupportedPolicyError(
                f"policy needs a look inside the vision tower ({', '.join(map(str, taps))}), and that of "
                f"{parts.adapter.model_type!r} is none whose attention can be told apart by visual tokens: use a "
                "policy that reads projected features."
            )

    def install(self) -> None:
        for attention, block, taps in self._at:
            inner = [tap for tap in taps if tap[1].what != "class_token"]
            outer = [tap for tap in taps if tap[1].what == "class_token"]
            if inner:
                self._undo.append(listen(attention, lambda module, *given, inner=inner: self._note(inner, *given)))
            if outer:
                note = Hook(lambda module, args, output, outer=outer: self._class_token(outer, output))
                self._undo.append(block.register_forward_hook(note).remove)

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()

    # Resolving

    def _layer(self, tap: Tap, count: int) -> int:
        layer = tap.layer
        if layer is None:
            layer = max(read_layers(self._parts.config, count))
        if isinstance(layer, float):
            layer = int(layer * count)
        if not -count <= layer < count:
            asked = "the one that is read" if tap.layer is None else tap.layer
            raise UnsupportedPolicyError(
                f"layer={asked} is not in the vision tower of {self._parts.adapter.model_type!r}, which has "
                f"{count} attention layers: give an index from {-count} to {count - 1}, or a share in [0, 1)."
            )
        return layer % count

    def _check(self, tap: Tap, has_class: bool) -> None:
        if (tap.what == "class_token" or tap.queries == "cls") and not has_class:
            raise UnsupportedPolicyError(
                f"policy needs the class token of the vision tower, and that of {self._parts.adapter.model_type!r} "
                "has none: use VisionAttention(queries='all' or 'auto'), or strict_paper=False."
            )

    # Noting

    @torch.no_grad()
    def _note(self, taps: list[tuple[Tap, Tap]], query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
        features, scale, bounds = self._current(), scale_of(query, kwargs), kwargs.get("cu_seq_lens_q")
        if features is None:
            return
        images = [(query, key, mask)]
        if bounds is not None:  # images packed into one row
            sizes = bounds.diff().tolist()
            images = [(q, k, None) for q, k in zip(query.split(sizes, 2), key.split(sizes, 2), strict=True)]
        with torch.autocast(query.device.type, enabled=False):
            for q, k, seen in images:
                for asked, wanted in taps:
                    self._keep(features, asked, self.expanded(_value(wanted, q, k, seen, scale)))

    @torch.no_grad()
    def _class_token(self, taps: list[tuple[Tap, Tap]], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if (features := self._current()) is not None:
            for asked, _ in taps:
                self._keep(features, asked, self.expanded(hidden[:, :1].expand_as(hidden)))

    def _keep(self, features: Features, asked: Tap, value: Tensor) -> None:
        features.prefix = self._prefix
        features.tower.setdefault(asked, []).append(value)


def _settled(tap: Tap, has_class: bool) -> tuple[Tap, Tap]:
    """The tap as asked, and with "auto" decided."""
    queries = ("cls" if has_class else "all") if tap.queries == "auto" else tap.queries
    return tap, replace(tap, queries=queries)


def _value(tap: Tap, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, L, c] float32"""
    if tap.heads == "joined":
        groups = query.shape[1] // key.shape[1]
        query, key = join_heads(query), join_heads(key.repeat_interleave(groups, dim=1))
        scale = query.shape[-1] ** -0.5
    if tap.what == "keys":
        return key.float().mean(1)
    if tap.queries == "all":
        return received_attention(query, key, scale, mask)[..., None]
    row = mask if mask is None else mask[:, :, :1]
    return attention_rows(query[:, :, :1], key, scale, row).mT

"""DeepStack: visual features that the decoder adds again after some of its layers, one row per visual token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tokens import Selection

MASKS = ("visual_pos_masks", "vision_mask")


@dataclass
class DeepStack:
    """The DeepStack arguments of one decoder call.

    Attributes:
        name: of the argument.
        rows: layer (or its number in a list) -> [n, D], in order of the visual positions of the batch.
        visual: [B, L] bool, the positions that have a row.
        only: the decoder's input is zero at visual positions, everything visual comes this way.
    """

    name: str
    rows: dict[Any, Tensor]
    visual: Tensor
    only: bool = False

    @classmethod
    def of(cls, kwargs: dict[str, Any], *, only: bool) -> DeepStack | None:
        """From the decoder's arguments; None where there is no DeepStack."""
        name = next((name for name in kwargs if name.startswith("deepstack") and kwargs[name] is not None), None)
        mask = next((kwargs[mask] for mask in MASKS if kwargs.get(mask) is not None), None)
        if name is None or mask is None:
            return None
        rows = kwargs[name]
        rows = dict(rows) if isinstance(rows, dict) else dict(enumerate(rows))
        return cls(name, rows, mask.reshape(mask.shape[:2]), only)

    @property
    def place(self) -> Tensor:
        """[B, L] long, which row a visual position has."""
        return (self.visual.flatten().cumsum(0) - 1).view_as(self.visual)

    def first(self, sample: Tensor, slots: Tensor) -> Tensor:
        """[G, N, D], rows of the first layer at positions [G, N]."""
        rows = next(iter(self.rows.values()))
        return rows[self.place[sample, slots].to(rows.device)]

    def merge(self, sample: Tensor, slots: Tensor, selection: Selection) -> None:
        """Combine rows with the weights that a policy combined tokens with.

        Args:
            sample, slots: [G, 1] and [G, N], positions of the tokens.
            selection: with merged features.
        """
        weights, source = selection.merge_weights(slots.shape[1]), selection.source_map(slots.shape[1])
        place = self.place[sample, slots]
        for layer, rows in self.rows.items():
            at = place.to(rows.device)
            kept = at.gather(1, selection.indices.to(rows.device))
            merged = rows.new_zeros(*kept.shape, rows.shape[-1], dtype=torch.float32)
            parts = rows[at].float() * weights.to(rows.device)[..., None]
            into = source.clamp_min(0).to(rows.device)[..., None].expand_as(parts)
            merged = merged.scatter_add(1, into, parts)
            self.rows[layer] = rows.index_put((kept,), merged.to(rows.dtype))

    def shorten(self, keep: Tensor, kwargs: dict[str, Any]) -> Any:
        """The argument for the [B, L] bool positions that stay."""
        kept = keep[self.visual.to(keep.device)]
        short = {layer: rows[kept.to(rows.device)] for layer, rows in self.rows.items()}
        return short if isinstance(kwargs[self.name], dict) else list(short.values())

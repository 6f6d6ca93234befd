"""DeepStack: visual features that the decoder adds again after some of its layers, one row per visual token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..tokens import Selection
from .gather import Cut

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

    def shorten(self, cut: Cut, kept: int, kwargs: dict[str, Any]) -> Any:
        """The argument for the positions that stay, of which so many are visual."""
        short = {layer: rows[self.rows_left(cut, kept).to(rows.device)] for layer, rows in self.rows.items()}
        return short if isinstance(kwargs[self.name], dict) else list(short.values())

    def rows_left(self, cut: Cut, kept: int) -> Tensor:
        """[kept] long, the rows of visual positions that stay, in order."""
        visual = self.visual.to(cut.keep.device)
        place = torch.where(cut.keep & visual, self.place.to(visual.device), visual.numel())
        return place.flatten().sort().values[:kept]


ADDS = "_deepstack_process"  # the decoders' method: (hidden states, visual positions, rows of one layer)


class LayerDeepStack:
    """DeepStack rows of layers that read a shorter sequence than the decoder's input.

    Args:
        deepstack: of the decoder's input.
        tokens: positions of its input in all samples, without left padding.
    """

    def __init__(self, deepstack: DeepStack, tokens: int):
        self._deepstack, self._tokens = deepstack, tokens

    @staticmethod
    def check(decoder: nn.Module, deepstack: DeepStack, drop: int) -> None:
        """Whether rows that are added behind layer `drop` and later can be shortened.

        Raises:
            UnsupportedModelError: the decoder adds them where nothing can be changed.
        """
        last = max(deepstack.rows)
        if drop <= last and not hasattr(decoder, ADDS):
            raise UnsupportedModelError(
                f"visual tokens are to leave layer {drop}, and {type(decoder).__name__} adds visual features to all of "
                f"them up to layer {last}: drop from layer {last + 1} on."
            )

    @staticmethod
    def install(decoder: nn.Module, short: Callable[[], tuple[Tensor, Tensor] | None]) -> Callable[[], None]:
        """Override the decoder's method on this instance. Returns what undoes it.

        Args:
            short: answers visual positions and rows for the layer that has just run; None: those that are given.
        """
        if not hasattr(decoder, ADDS):
            return lambda: None
        before = {ADDS: vars(decoder)[ADDS]} if ADDS in vars(decoder) else {}
        setattr(decoder, ADDS, _Adds(getattr(decoder, ADDS), short))

        def undo() -> None:
            del vars(decoder)[ADDS]
            vars(decoder).update(before)

        return undo

    def merge(self, sample: Tensor, slots: Tensor, selection: Selection) -> None:
        """As `DeepStack.merge`, with positions of the decoder's input."""
        self._deepstack.merge(sample, slots, selection)

    def shorten(self, layer: int, cut: Cut) -> tuple[Tensor, Tensor]:
        """Visual positions [B, L'] and the rows of one layer, for what is left."""
        visual, values = self._deepstack.visual, self._deepstack.rows[layer]
        rows = self._deepstack.rows_left(cut, len(values) - (self._tokens - int(cut.lengths.sum())))
        return cut.take(visual, 1) & cut.valid.to(visual.device), values[rows.to(values.device)]


class _Adds:
    """The decoder's method on shorter rows. A deep or pickled copy of the decoder gets the method alone."""

    def __init__(self, add: Callable[..., Tensor], short: Callable[[], tuple[Tensor, Tensor] | None]):
        self._add, self._short = add, short

    def __call__(self, hidden: Tensor, *given: Tensor) -> Tensor:
        return self._add(hidden, *(self._short() or given))

    def __reduce__(self) -> tuple:
        return getattr, (self._add.__self__, ADDS)

"""The one exception to "no class is touched": a cache *object* that went through a pruned forward.

`generate` and position ids count *logical* tokens, those of the prompt the user gave; masks and keys count *physical*
ones, those in the cache. A pruned cache answers each with the right number. Its class becomes a subclass of what it
was, for this object alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ..errors import StaleCacheError, UnsupportedModelError


class Life:
    """Shared by a stage, the caches it pruned and their copies: False once the handle is removed."""

    alive = True

    def __deepcopy__(self, memo: dict) -> Life:
        return self


@dataclass
class LayerState:
    """What pruning inside the language model did to the cache of the layers behind one drop.

    Attributes:
        valid: [B, P] bool, their slots at the last cut.
        covered: slots of the first layer that these stand for.
        all_valid: host copy of `valid.all()`.
        shift: [B] long, how much lower positions are numbered there than in the first layer; None for as there.
    """

    valid: Tensor
    covered: int
    all_valid: bool
    shift: Tensor | None = None

    def length(self, past: int) -> int:
        """Slots filled where the first layer has `past`: what came since, or was cropped, is the same in all layers."""
        return self.valid.shape[1] + past - self.covered

    def mask(self, mask: Tensor | None, past: int, new: int) -> Tensor | None:
        """[B, length + new] over their slots, or None if all are valid.

        Args:
            mask: [B, past + new] over slots of the first layer, None where all are valid.
            past, new: slots filled in the first layer, and tokens of this call.
        """
        if mask is None and self.all_valid:
            return None
        before = self.valid[:, : self.length(past)]
        if mask is None:
            return torch.cat([before, before.new_ones(before.shape[0], self.length(past) + new - before.shape[1])], 1)
        return torch.cat([before, mask[:, min(self.covered, past) :].to(before.device).bool()], 1)


@dataclass
class CacheState:
    """What pruning did to one cache.

    Attributes:
        life: of the stage that pruned it.
        valid: [B, P] bool, the physical slots at the last cut; False where a slot is padding.
        removed: logical minus physical length, one number for the batch since both are left-padded.
        all_valid: host copy of `valid.all()`.
        shift: [B] long, original minus compact position of the next token; None for original positions.
        layers: first layer behind a drop inside the language model -> state of the caches from there on.
    """

    life: Life
    valid: Tensor
    removed: int
    all_valid: bool
    shift: Tensor | None = None
    layers: dict[int, LayerState] = field(default_factory=dict)

    @property
    def logical(self) -> int:
        """Logical length that `valid` covers."""
        return self.valid.shape[1] + self.removed

    def per_row(self, function) -> None:
        """Apply a change of the batch (repeat, select, reorder) to everything kept per row."""
        self.valid = function(self.valid)
        for state in (self, *self.layers.values()):
            if state.shift is not None:
                state.shift = function(state.shift)
        for state in self.layers.values():
            state.valid = function(state.valid)

    def behind(self, layer: int) -> LayerState | None:
        """Of the last drop in front of a layer or at it; None where none is."""
        drops = [drop for drop in self.layers if drop <= layer]
        return self.layers[max(drops)] if drops else None

    def valid_slots(self, past: int, new: int = 0) -> Tensor:
        """[B, past + new] bool: `valid` as far as the cache is filled (less after a crop), True for what came later."""
        covered = self.valid[:, :past]
        return torch.cat([covered, covered.new_ones(covered.shape[0], past - covered.shape[1] + new)], 1)

    def physical_mask(self, mask: Tensor | None, past: int, new: int) -> Tensor | None:
        """The mask [B, past + new] over cache slots that stands for a logical mask [B, T], or None if all are valid.

        Args:
            mask: what the caller gave, over logical tokens.
            past: slots filled before this call (may be fewer than `valid` has, after a crop).
            new: tokens of this call.
        """
        if mask is None:
            return None if self.all_valid else self.valid_slots(past, new).long()
        valid = self.valid.to(mask.device, mask.dtype)
        if mask.shape[1] >= self.logical:
            return torch.cat([valid, mask[:, self.logical :]], 1)
        return valid[:, : mask.shape[1] - self.removed]


class PrunedCacheMixin:
    """Placed before the class of a cache object that went through a pruned forward."""

    _tokenprune: CacheState | None

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Logical length without a layer, physical length of a layer."""
        if layer_idx is not None or self._tokenprune is None:
            return super().get_seq_length(layer_idx or 0)
        return self.front_length() + self._tokenprune.removed

    def front_length(self) -> int:
        """Slots filled in the first layer, also where that one has none (recurrence) and the first that has is cut."""
        length = super().get_seq_length(0)
        counted = next((i for i, layer in enumerate(self.layers) if isinstance(layer, CacheLayerMixin)), 0)
        behind = None if self._tokenprune is None else self._tokenprune.behind(counted)
        return length if behind is None else behind.covered + length - behind.valid.shape[1]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx)

    def update(self, *args: Any, **kwargs: Any):
        if self._tokenprune is not None and not self._tokenprune.life.alive:
            raise StaleCacheError(
                "past_key_values was filled by a pruned forward whose handle has been removed, so masks and positions "
                "can no longer be set right: continue it before handle.remove(), or start with a new cache."
            )
        return super().update(*args, **kwargs)

    def reset(self) -> None:
        super().reset()
        self._tokenprune = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._change(lambda t: t.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._change(lambda t: t[indices.to(t.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._change(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def _change(self, function) -> None:
        if self._tokenprune is not None:
            self._tokenprune.per_row(function)


def state_of(cache: Any) -> CacheState | None:
    """The pruning state of a cache, None if it never went through a pruned forward."""
    return getattr(cache, "_tokenprune", None)


def attach(cache: Any, state: CacheState) -> None:
    """Give a cache its pruning state.

    Raises:
        UnsupportedModelError: an encoder-decoder cache.
    """
    if hasattr(cache, "cross_attention_cache"):
        raise UnsupportedModelError("past_key_values is an encoder-decoder cache: only decoder-only models are pruned.")
    if not isinstance(cache, PrunedCacheMixin):
        kind = type(cache)
        cache.__class__ = type(f"Pruned{kind.__name__}", (PrunedCacheMixin, kind), {})
    cache._tokenprune = state


def physical_length(cache: Any) -> int:
    """Slots filled so far; 0 for None and for a cache that was never used."""
    if isinstance(cache, PrunedCacheMixin):
        return int(cache.front_length())
    return 0 if cache is None else int(cache.get_query_offset())

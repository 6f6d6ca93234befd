"""Calls that continue a pruned cache, or fill a static one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from ..errors import UnsupportedModelError
from .cache import CacheState, LayerState, Life, attach, physical_length, state_of
from .gather import Cut, is_prepared
from .layer_call import LayerCall
from .positions import two_dimensional


def segment_of(given: dict[str, Any]) -> Tensor:
    """What a call adds: ids [B, new] or embeddings [B, new, D]."""
    ids = given.get("input_ids")
    return given["inputs_embeds"] if ids is None else ids


def continue_cache(outer: nn.Module, given: dict[str, Any], *, fills: bool) -> None:
    """Translate mask and positions of a call from logical tokens to cache slots, in place.

    Args:
        outer: the module that is called.
        given: its arguments by name.
        fills: this call brings visual tokens that are to be pruned.

    Raises:
        UnsupportedModelError: a ready-made 4-D mask that does not say which tokens its columns are about.
    """
    cache, mask = given.get("past_key_values"), given.get("attention_mask")
    state = state_of(cache)
    if state is None and not fills:
        return
    segment = segment_of(given)
    batch, new = segment.shape[:2]
    prepared = is_prepared(mask)
    if prepared and getattr(cache, "is_compileable", False):
        # A decode step must not read the length of a static cache, which lives on the device.
        nothing_to_say = new == 1 and state is not None and state.all_valid
        given["attention_mask"] = (
            None if nothing_to_say else two_dimensional(mask, state, batch, new, physical_length(cache))
        )
    elif state is not None:
        if prepared:
            raise UnsupportedModelError(
                "attention_mask is 4-D in a call that continues a pruned cache, and does not say which tokens its "
                "columns are about: give a 2-D mask over all tokens so far, or None."
            )
        if given.get("position_ids") is None and hasattr(outer, "compute_3d_position_ids"):
            given["position_ids"] = _three_dimensional(outer, given, new)  # it would count them from the mask
        given["attention_mask"] = state.physical_mask(mask, physical_length(cache), new)
    # Models that make masks from token types refuse static caches, whose length a decode step must not read either.
    if state is not None and not getattr(cache, "is_compileable", False):
        given.update(_types(given, cache, new))
    if state is not None and state.shift is not None:
        positions = given.get("position_ids")
        if positions is None:
            positions = (torch.arange(new, device=segment.device) + int(cache.get_seq_length()))[None]
        given["position_ids"] = positions - state.shift.to(positions.device)[:, None]


def _types(given: dict[str, Any], cache: Any, new: int) -> dict[str, Tensor]:
    """Token types of all tokens so far, by cache slot: masks of images that see themselves are made from them.

    Earlier slots count as text. Only tokens of one image see ahead, and no image lies in two calls.
    """
    names = ("token_type_ids", "mm_token_type_ids")
    types = {name: given[name] for name in names if given.get(name) is not None and given[name].shape[1] > new}
    if not types:
        return {}
    past, logical = physical_length(cache), int(cache.get_seq_length())
    return {
        name: torch.cat([value.new_zeros(value.shape[0], past), value[:, logical:]], 1)
        for name, value in types.items()
        if value.shape[1] == logical + new
    }


def _three_dimensional(outer: nn.Module, given: dict[str, Any], new: int) -> Tensor | None:
    """M-RoPE positions as the model itself numbers new text, from the logical mask."""
    embeds = given.get("inputs_embeds")
    if embeds is None:
        embeds = torch.empty(*given["input_ids"].shape, 0, device=given["input_ids"].device)
    if any(name.endswith("_grid_thw") and value is not None for name, value in given.items()):
        return None
    known = {"inputs_embeds": embeds, **{name: given.get(name) for name in ("attention_mask", "past_key_values")}}
    wanted = inspect.signature(outer.compute_3d_position_ids).parameters.values()  # differ by family
    positions = outer.compute_3d_position_ids(
        **{one.name: known.get(one.name) for one in wanted if one.name in known or one.default is one.empty}
    )
    return None if positions is None else positions[..., -new:]


def remember(
    cache: Any,
    *,
    life: Life,
    cut: Cut,
    real: Tensor,
    mask: Tensor | None,
    clean: bool,
    past: int,
    shift: Tensor | None,
) -> None:
    """Tell a cache which slots are valid and how many tokens it stands for.

    Args:
        life: of the stage that pruned.
        cut: of this call.
        real: [B, L] bool, False at padding.
        mask: [B, past + L] over cache slots, None where all are valid.
        clean: as in `visual.Call`.
        past: slots filled before this call.
        shift: [B], see `CacheState`.
    """
    state = state_of(cache)
    batch, device = cut.valid.shape[0], cut.valid.device
    if mask is not None:
        before = mask[:, :past].to(device).bool()
    elif state is not None:
        before = state.valid_slots(past)
    else:
        before = cut.valid.new_ones(batch, past)
    # A row of the mask that is 0 inside the segment (right padding) stays 0.
    valid = torch.cat([before, cut.valid & cut.take(real, 1)], 1)
    removed = cut.removed + (0 if state is None else state.removed)
    layers = {} if state is None else state.layers
    attach(cache, CacheState(life, valid, removed, clean and not cut.ragged, shift, layers))


def remember_layers(cache: Any, call: LayerCall, drops: list[int]) -> None:
    """Tell a cache, which knows of this call already, what its layers behind every drop hold.

    Args:
        drops: all layers that tokens may leave, ascending.
    """
    state, past, current = state_of(cache), call.past, None
    earlier, made = state.valid[:, :past], {}
    if call.forgets:
        forget(cache, call)
    if (first := call.drops.get(call.forgets)) is not None:  # the first layer holds less than came in front of it
        state.valid = torch.cat([earlier, first.real.to(earlier.device)], 1)
        state.removed += first.cut.removed
        state.all_valid = call.outer.clean and not first.cut.ragged
    for drop in drops:
        current, old = call.drops.get(drop, current), state.behind(drop)
        held = first if drop <= call.forgets else current
        if held is None:  # nothing left this call up to here, so what came is the same as in the first layer
            continue
        before = earlier if old is None else old.mask(earlier, past, 0)
        shift = None if old is None else old.shift
        if current is not None and current.positions is not None:
            shift = (call.positions[:, -1] - current.positions[:, -1]).to(earlier.device)
        if held is first and old is None and shift is None:  # as in the first layer
            continue
        valid = torch.cat([before, held.real.to(before.device)], 1)
        all_valid = call.outer.clean and not held.cut.ragged and (old is None or old.all_valid)
        made[drop] = LayerState(valid, state.valid.shape[1], all_valid, shift)
    state.layers.update(made)


def forget(cache: Any, call: LayerCall) -> None:
    """Take what a forgetting event removed out of the layers in front of it.

    Raises:
        UnsupportedModelError: layers that hold keys otherwise than one behind the other.
    """
    left = call.drops[call.forgets]
    for i, layer in enumerate(cache.layers[: call.forgets]):
        if not isinstance(layer, CacheLayerMixin):
            continue  # recurrent: nothing of single tokens is there
        if type(layer) is not DynamicLayer:
            raise UnsupportedModelError(
                f"past_key_values holds a {type(layer).__name__} in layer {i}, which cannot forget single tokens: use "
                "the default cache, or a policy that leaves earlier layers alone (forget=False)."
            )
        own = call.drops.get(max((drop for drop in call.drops if drop <= i), default=-1))
        index = left.cut.index if own is None else own.cut.moved.gather(1, left.cut.index).clamp_min(0)
        length = left.cut.length if own is None else own.cut.index.shape[1]
        layer.keys, layer.values = (_kept(rows, index, length) for rows in (layer.keys, layer.values))


def _kept(rows: Tensor, index: Tensor, length: int) -> Tensor:
    """[B, H, K, d] with the last `length` of its places K cut to [B, L'] `index`."""
    first = rows.shape[2] - length
    index = index.to(rows.device)[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
    return torch.cat([rows[:, :, :first], rows[:, :, first:].gather(2, index)], 2)

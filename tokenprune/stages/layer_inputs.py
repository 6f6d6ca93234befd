"""Masks and positions of a layer that reads another sequence, or has another cache, than the layers before it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING as MASKS

from ..errors import UnsupportedModelError
from .cache import LayerState
from .gather import RECURRENT, Cut, shorten_layer_mask
from .layer_call import LayerCall, hidden_rows
from .parts import Parts
from .positions import one_sequence


def kind_of(config: Any, layer: int) -> str:
    """The attention of a layer, in the words of `config.layer_types`."""
    types = getattr(config, "layer_types", None)
    if types:
        return types[layer]
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"


def frequencies(parts: Parts, layer: int) -> Tensor | None:
    """[d / 2] rotary frequencies of a layer; None where it has none that are known."""
    embedding = getattr(parts.decoder, "rotary_emb", None)
    by_type = f"{kind_of(parts.decoder.config, layer)}_inv_freq"
    return getattr(embedding, "inv_freq", getattr(embedding, by_type, None))


def renew(
    parts: Parts, call: LayerCall, layer: int, args: tuple, kwargs: dict[str, Any], old: LayerState | None
) -> tuple[tuple, dict[str, Any]]:
    """A layer's arguments for the sequence it gets and the cache it has.

    In a call that continues no cache the given masks are cut, which keeps images that see themselves. Else transformers
    makes new ones for this layer's own cache, and only what this call's positions see of each other is cut.

    Args:
        args, kwargs: as the decoder gives them, hidden states of the sequence it gets first (or by name).
        old: state of its cache, None where all of it is as in the first layer.
    """
    config, cut = parts.decoder.config, call.cut
    hidden, cache = args[0] if args else kwargs["hidden_states"], kwargs.get("past_key_values")
    kind, flash = kind_of(config, layer), "flash" in parts.attention
    past = call.past if old is None else old.length(call.past)
    new = hidden_rows(hidden, call.batch).shape[1]
    continued = past > 0 or getattr(cache, "is_compileable", False)
    if cut is not None:
        rest, kwargs = _shorten(args[1:], kwargs, call, kind=kind, masks=not continued, flash=flash)
        args = args[:1] + rest
        mask = kwargs.get("attention_mask")
        if not continued and _is_matrix(mask) and mask.shape[2] > new:  # only the last rows go on
            kwargs["attention_mask"] = mask[:, :, -new:]
        if flash and call.batch == 1:
            kwargs.update(one_sequence(hidden, past))
    plain = new == 1 and kwargs.get("attention_mask") is None and call.mask is None and (old is None or old.all_valid)
    if continued and not plain and kind in MASKS:
        given, mask = kwargs.get("attention_mask"), _mask(parts, call, layer, kind, hidden, new, cache, old)
        if _is_matrix(given) and (cut is not None or (new > 1 and not call.static)):
            mask = _as_given(mask, given, cut, new, static=call.static)
        if _is_matrix(mask):  # layers that share keys may go on with the last rows only
            mask = mask[:, :, -new:]
        kwargs = {**kwargs, "attention_mask": mask}
    if (positions := _positions(call, old)) is not None:
        kwargs = {**kwargs, **_renumbered(parts, call, kind, kwargs, hidden, positions, old)}
    return args, kwargs


def _shorten(
    args: tuple, kwargs: dict[str, Any], call: LayerCall, *, kind: str, masks: bool, flash: bool
) -> tuple[tuple, dict[str, Any]]:
    """Everything beside the hidden states that is about the decoder's input.

    Most of what has a name is handed to one layer after the other, and is cut for the first of them.
    """
    cut = call.cut

    def shorten(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(shorten(one) for one in value)
        return _cut_rows(value, cut) if isinstance(value, Tensor) else value

    def named(name: str, value: Any) -> Any:
        if not name.endswith("mask"):
            return shorten(value)
        return shorten_layer_mask(value, "conv" if "conv" in name else kind, cut, flash=flash) if masks else value

    short = {}
    for name, value in kwargs.items():
        if name == "hidden_states":
            short[name] = value
            continue
        key = ("cut", name, kind, id(value))
        if key not in call.renewed:
            call.renewed[key] = value, named(name, value)  # kept beside it, an id stays that of one thing
        short[name] = call.renewed[key][1]
    return tuple(shorten(value) for value in args), short


def _cut_rows(value: Tensor, cut: Cut) -> Tensor:
    """[B | 1, L, ..], [.., B | 1, L, d] or [.., B | 1, L] along L; anything else as it is."""
    batch, length = cut.keep.shape
    for dim in (1, value.ndim - 2, value.ndim - 1):
        if 0 < dim < value.ndim and value.shape[dim] == length and value.shape[dim - 1] in (1, batch):
            return cut.take(value, dim)
    return value


def _mask(
    parts: Parts, call: LayerCall, layer: int, kind: str, hidden: Tensor, new: int, cache: Any, old: LayerState | None
) -> Any:
    """The mask transformers makes for the layer's own cache, once for all layers of a kind behind the same drop."""
    key = ("mask", kind, id(old))
    if key not in call.renewed:
        seen = call.seen(new, old)
        function = MASKS[kind]
        if isinstance(function, dict):
            function = next(one for name, one in function.items() if name not in RECURRENT)
        known = {"layer_idx": layer} if "layer_idx" in inspect.signature(function).parameters else {}
        call.renewed[key] = function(
            config=parts.decoder.config,
            inputs_embeds=hidden.new_empty(call.batch, new, 0),
            attention_mask=None if seen is None else seen.to(hidden.device),
            past_key_values=cache,
            position_ids=None,
            **known,
        )
    return call.renewed[key]


def _is_matrix(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 4


def _as_given(mask: Any, given: Tensor, cut: Cut | None, new: int, *, static: bool) -> Any:
    """A mask with what this call's positions see of each other in the given one, which may be made by images.

    Args:
        mask: [B | 1, 1, L', keys] for the layer's own cache; None for plain causal attention.
        given: [B | 1, 1, L, keys of the first layer].
        cut: of the L positions, None where all are left.
        new: L', positions that are left.
        static: the cache was empty, and has more slots than this call fills; else the last columns are this call's.
    """
    if mask is None and static:
        hidden = False if given.dtype == torch.bool else torch.finfo(given.dtype).min
        mask = given.new_full((1, 1, new, given.shape[-1]), hidden)
    if not _is_matrix(mask):
        return mask
    first = 0 if static else mask.shape[-1] - new
    length = new if cut is None else cut.length
    inner = given[..., :length] if static else given[..., -length:]
    inner = inner.expand(mask.shape[0], -1, -1, -1) if cut is None else cut.shorten_mask(inner)
    mask = mask.expand(inner.shape[0], -1, -1, -1)[:, :, -inner.shape[2] :]
    return torch.cat([mask[..., :first], inner, mask[..., first + new :]], -1)


def _positions(call: LayerCall, old: LayerState | None) -> Tensor | None:
    """[B, L] position ids where they are other than in the first layer."""
    if call.cut is not None:
        return call.sequence.positions
    if old is None or old.shift is None:
        return None
    if (key := ("positions", id(old))) not in call.renewed:
        call.renewed[key] = call.positions - old.shift.to(call.positions.device)[:, None]
    return call.renewed[key]


def _renumbered(
    parts: Parts,
    call: LayerCall,
    kind: str,
    kwargs: dict[str, Any],
    hidden: Tensor,
    positions: Tensor,
    old: LayerState | None,
) -> dict[str, Any]:
    changed = {} if kwargs.get("position_ids") is None else {"position_ids": positions}
    if kwargs.get("position_embeddings") is not None:
        key = ("rotary", kind, id(old))
        if key not in call.renewed:
            embedding = getattr(parts.decoder, "rotary_emb", None)
            if embedding is None:
                raise UnsupportedModelError(
                    f"positions='compact' inside the language model needs its rotary embedding, and that of "
                    f"{parts.adapter.model_type!r} is not where it could be found: use positions='original'."
                )
            typed = "layer_type" in inspect.signature(embedding.forward).parameters
            arguments = (hidden, positions.to(hidden.device), *([kind] if typed else []))
            with torch.no_grad():
                call.renewed[key] = embedding(*arguments)
        changed["position_embeddings"] = call.renewed[key]
    return changed

"""What pruning means, written without hooks on the model under test, caches, padding or batches: contract 2.

An unpruned model is run over the whole prompt, and over the prompt with the answer behind it, and what its decoder was
given is noted. Then rows are dropped by hand, sample by sample, and the decoder runs once over all that is left, with
the answer: row t of the answer must be what decode step t answered.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.families import IMAGE, VIDEO

SEQUENCES = ("inputs_embeds", "position_ids", "attention_mask")
_WHERE: list[int] = []  # the layer that `dropping_at` says


@contextmanager
def dropping_at(layer: int):
    """What `keep` says leaves in front of this layer of the decoder, rather than in front of all."""
    _WHERE.append(layer)
    try:
        yield
    finally:
        _WHERE.pop()


def text_decoder(model: Any) -> Any:
    """The module that gets embeddings and answers hidden states."""
    decoder = model.get_decoder()
    return decoder.model if hasattr(decoder, "lm_head") else decoder


def head(model: Any) -> Any:
    return model.get_output_embeddings() or model.get_decoder().lm_head


@torch.no_grad()
def decoder_inputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What `generate` gives the decoder at prefill, unpruned."""
    noted: dict[str, Any] = {}

    def note(module, args, kwargs):
        if not noted:
            noted.update(kwargs)

    hook = text_decoder(model).register_forward_pre_hook(note, with_kwargs=True)
    try:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    finally:
        hook.remove()
    return noted


def extended(inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The same inputs with `tokens` [B, steps] behind the prompt."""
    length, steps = inputs["input_ids"].shape[1], tokens.shape[1]
    longer = dict(inputs)
    for name, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            fill = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}.get(name, torch.zeros_like(tokens))
            longer[name] = torch.cat([value, fill.to(value.dtype)], 1)
    assert longer["input_ids"].shape[1] == length + steps
    return longer


def visual(inputs: dict[str, Tensor]) -> Tensor:
    """[B, L] bool"""
    return (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)


def newlines(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """[B, L] bool, placeholders that hold the model's newline embedding instead of a patch."""
    newline, places = getattr(model.base_model, "image_newline", None), visual(inputs)
    if newline is None:
        return torch.zeros_like(places)
    given = decoder_inputs(model, inputs)
    x = given["inputs_embeds"]
    if isinstance(given.get("deepstack_features"), dict):  # everything visual comes that way
        x = torch.zeros_like(x)
        x[places] = next(iter(given["deepstack_features"].values())).to(x)
    return (x == newline.to(x)).all(-1) & places


@torch.no_grad()
def logits(
    model: Any,
    inputs: dict[str, Tensor],
    keep: Tensor,
    tokens: Tensor,
    *,
    mix: list[Tensor] | None = None,
    rows: dict[tuple[int, int], Tensor] | None = None,
    compact: bool = False,
    inside: dict[int, Tensor] | None = None,
    merged: dict[int, dict[tuple[int, int], dict[int, float]]] | None = None,
    renumber: bool = False,
) -> Tensor:
    """[B, steps, V] logits of every step of the answer `tokens` [B, steps].

    Args:
        keep: [B, L] bool, what is left of the prompt (padding is dropped in any case).
        mix: per sample [L, L], rows of the prompt as weighted sums of its rows (merged tokens).
        rows: (sample, position) -> [D], what stands there instead (tokens merged before the projector).
        compact: number the kept tokens 0, 1, 2 ... instead of keeping their positions.
        inside: layer -> [B, L] bool, what of the prompt is left of it from that layer on.
        merged: layer -> (sample, position) -> positions whose hidden states are added up there, and their shares.
        renumber: number what is left there 0, 1, 2 ...
    """
    if _WHERE and inside is None:
        inside, keep, compact, renumber = {_WHERE[-1]: keep}, torch.ones_like(keep), False, compact
    length, steps = inputs["input_ids"].shape[1], tokens.shape[1]
    prompt = decoder_inputs(model, inputs)
    whole = decoder_inputs(model, extended(inputs, tokens[:, : steps - 1])) if steps > 1 else prompt
    valid = extended(inputs, tokens[:, : steps - 1])["attention_mask"].bool()
    keep = torch.cat([keep, keep.new_ones(len(keep), steps - 1)], 1) & valid
    answers = []
    for b, row in enumerate(keep):
        at = row.nonzero()[:, 0]
        given = {name: _sample(value, b, valid.shape) for name, value in whole.items() if name not in SEQUENCES}
        if given.get("past_key_values") is not None:
            given["past_key_values"] = None
        x = whole["inputs_embeds"][b].clone()
        positions = whole["position_ids"]
        if positions is None:
            positions = (valid.cumsum(1) - 1).clamp_min(0)
        positions = positions[..., b if positions.shape[-2] > 1 else 0, :]
        given.update(_deepstack(whole, b, at, None if mix is None else mix[b]))
        if mix is not None:
            x = torch.cat([(mix[b] @ x[:length].float()).to(x.dtype), x[length:]])
        for sample, slot in rows or {}:
            if sample == b:
                x[slot] = rows[sample, slot]
        given = {name: value[:, at] if _is_sequence(value, valid.shape[1]) else value for name, value in given.items()}
        positions = torch.arange(len(at)) if compact else positions[..., at]
        later = [
            (
                layer,
                torch.cat([left[b], left.new_ones(steps - 1)])[at].nonzero()[:, 0],
                {
                    int((at == slot).nonzero()): {
                        int((at == member).nonzero()): share for member, share in members.items()
                    }
                    for (sample, slot), members in (merged or {}).get(layer, {}).items()
                    if sample == b
                },
            )
            for layer, left in sorted((inside or {}).items())
        ]
        with dropping(text_decoder(model), len(at), later, renumber, prompt=int((at < length).sum())):
            out = text_decoder(model)(
                **{
                    **given,
                    "inputs_embeds": x[None, at],
                    "position_ids": positions[:, None] if positions.ndim == 2 else positions[None],
                    "attention_mask": _mask(prompt["attention_mask"], b, at, length, text_decoder(model).config),
                    "use_cache": False,
                    **({"logits_to_keep": 0} if "logits_to_keep" in given else {}),
                }
            )
        answers.append(head(model)(out.last_hidden_state)[0, -steps:])
    return torch.stack(answers)


@contextmanager
def dropping(
    decoder: Any,
    length: int,
    drops: list[tuple[int, Tensor, dict[int, dict[int, float]]]],
    renumber: bool,
    *,
    prompt: int,
):
    """Layers that read only some of the one prompt's positions, without padding or cache.

    Args:
        drops: (layer, [n] long, positions among all `length` that it and those behind it read, what of these is a
            mean: of which positions, with which shares).
        prompt: how many of all are the prompt; windows of the answer count what is left.
    """
    hooks, added = [], getattr(decoder, "_deepstack_process", None)
    now, done = [torch.arange(length)], []

    def dropped(x: Tensor, dim: int, before: Tensor, left: Tensor, means: dict[int, dict[int, float]]) -> Tensor:
        place = {int(position): i for i, position in enumerate(before)}
        rows = []
        for position in left.tolist():
            shares = means.get(position, {position: 1.0})
            members = x.index_select(dim, torch.tensor([place[one] for one in shares]))
            weights = torch.tensor(list(shares.values()), dtype=x.dtype).view(-1, *[1] * (x.ndim - dim - 1))
            rows.append((members * weights).sum(dim, keepdim=True))
        return torch.cat(rows, dim)

    def before(i, module, args, kwargs):
        names = list(kwargs)
        values = [*args, *kwargs.values()]
        at_start = names.index("hidden_states") + len(args) if "hidden_states" in names else 0
        hidden = values[at_start]
        for layer, left, means in drops:
            if layer == i:
                dim = hidden.ndim - 2 if hidden.shape[1] != len(now[0]) else 1
                hidden = dropped(hidden, dim, now[0], left, means)
                done.append((now[0], left, means))
                now[0] = left
        values = [_some(value, now[0], length) for value in values]
        values[at_start] = hidden
        kwargs = dict(zip(names, values[len(args) :], strict=True))
        kinds = getattr(decoder.config, "layer_types", None)
        local = kinds and kinds[i] in ("sliding_attention", "hybrid_sliding", "chunked_attention")
        if local and isinstance(kwargs.get("attention_mask"), Tensor):
            kwargs["attention_mask"] = windowed(kwargs["attention_mask"], kinds[i])
        if renumber and kwargs.get("position_embeddings") is not None and len(now[0]) < length:
            typed = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
            numbers = torch.arange(len(now[0]))[None]
            kwargs["position_embeddings"] = decoder.rotary_emb(hidden, numbers, *([kinds[i]] if typed else []))
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = numbers
        return tuple(values[: len(args)]), kwargs

    def windowed(mask: Tensor, kind: str) -> Tensor:
        answer = (now[0] >= prompt)[None, None, :, None]
        n = torch.arange(len(now[0]))
        seen = n[:, None] - n >= 0
        if kind == "chunked_attention":
            chunk = n // decoder.config.attention_chunk_size
            seen &= chunk[:, None] == chunk
        else:
            seen &= n[:, None] - n < decoder.config.sliding_window
        if mask.dtype != torch.bool:
            seen = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return torch.where(answer, seen, mask)

    def add(hidden, visual, rows):
        dense = torch.zeros(length, rows.shape[-1], dtype=rows.dtype)
        dense[visual[0]] = rows
        for step in done:
            dense = dropped(dense, 0, *step)
        kept = visual[0, now[0]]
        return added(hidden, kept[None], dense[kept])

    try:
        if drops:
            for i, layer in enumerate(decoder.layers):
                hooks.append(layer.register_forward_pre_hook(partial(before, i), with_kwargs=True))
            if added is not None:
                decoder._deepstack_process = add
        yield
    finally:
        for hook in hooks:
            hook.remove()
        vars(decoder).pop("_deepstack_process", None)


def _some(value: Any, at: Tensor, length: int) -> Any:
    """Of anything a layer is given, the positions `at` along every dimension of the whole length."""
    if isinstance(value, tuple):
        return tuple(_some(one, at, length) for one in value)
    if isinstance(value, Tensor):
        for dim in range(1, value.ndim):
            if value.shape[dim] == length:
                value = value.index_select(dim, at)
    return value


def _is_sequence(value: Any, length: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == (1, length)


def _sample(value: Any, b: int, shape: torch.Size) -> Any:
    """Sample b of anything that is one row per position."""
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] in (1, shape[0]) and value.shape[1] == shape[1]:
        return value[b : b + 1] if value.shape[0] > 1 else value
    return value


def _deepstack(given: dict[str, Any], b: int, at: Tensor, mix: Tensor | None) -> dict[str, Any]:
    """DeepStack rows of sample b at the kept positions."""
    name = next((name for name in given if name.startswith("deepstack") and given[name] is not None), None)
    if name is None:
        return {}
    mask = next(given[mask] for mask in ("visual_pos_masks", "vision_mask") if given.get(mask) is not None)
    mask = mask.reshape(mask.shape[:2])
    several = isinstance(given[name], dict)
    layers = given[name].items() if several else enumerate(given[name])
    short = {}
    for layer, rows in layers:
        dense = torch.zeros(*mask.shape, rows.shape[-1], dtype=rows.dtype)
        dense[mask] = rows
        if mix is not None:
            dense[b, : len(mix)] = mix @ dense[b, : len(mix)]
        short[layer] = dense[b, at][mask[b, at]]
    return {name: short if several else list(short.values())}


def _mask(mask: Any, b: int, at: Tensor, length: int, config: Any) -> Any:
    """Masks that the outer module made over the prompt, over what is left of it and the answer; ones otherwise."""
    if isinstance(mask, dict):
        return {kind: _extend(one, b, at, length, config, kind) for kind, one in mask.items()}
    if isinstance(mask, Tensor) and mask.ndim == 4:
        return _extend(mask, b, at, length, config, "full_attention")
    return torch.ones(1, len(at)).long()


def _extend(mask: Tensor | None, b: int, at: Tensor, length: int, config: Any, kind: str) -> Tensor:
    """[1, 1, n, n] bool: as given inside the prompt, causal (and within the window) for the answer."""
    n, prompt = len(at), at[at < length]
    if kind in ("linear_attention", "conv"):
        return torch.ones(1, n).long()
    distance = torch.arange(n)[:, None] - torch.arange(n)[None]
    full = distance >= 0
    if kind == "sliding_attention":
        full &= distance < config.sliding_window
    if mask is not None:
        one = mask[b if mask.shape[0] > 1 else 0, 0]
        one = one if one.dtype == torch.bool else one == 0
        full[: len(prompt), : len(prompt)] = one[prompt][:, prompt]
    elif kind == "sliding_attention":
        full[: len(prompt), : len(prompt)] = (distance >= 0)[: len(prompt), : len(prompt)]
    full = full[None, None]
    if config._attn_implementation == "eager":
        return torch.zeros(full.shape).masked_fill(~full, torch.finfo(torch.float32).min)
    return full


def keep_mask(inputs: dict[str, Tensor], report: Any, protected: Tensor | None = None) -> Tensor:
    """[B, L] bool of what a report says was kept."""
    keep = ~visual(inputs)
    if protected is not None:
        keep |= protected
    for unit in report.units:
        keep[unit.sample, unit.slots[unit.indices]] = True
    return keep


def mixing(inputs: dict[str, Tensor], report: Any) -> list[Tensor]:
    """Per sample [L, L]: every survivor is the mean of the tokens it stands for."""
    batch, length = inputs["input_ids"].shape
    mix = [torch.eye(length) for _ in range(batch)]
    for unit in report.units:
        for place, slot in enumerate(unit.slots[unit.indices].tolist()):
            carried = unit.slots[unit.source == place]
            mix[unit.sample][slot] = 0
            mix[unit.sample][slot, carried] = 1 / len(carried)
    return mix

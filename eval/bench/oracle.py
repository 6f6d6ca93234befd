"""The oracle: the same model fed the kept tokens, chosen in advance, by calls of its own modules without any hook.

One pruned run is watched; what it gave the decoder (embeddings of the tokens kept, their positions and masks) is noted,
and the tokens that left between layers are found by comparing rows before and behind. The oracle then runs the tower
and projector on all pixels, and the decoder on what was noted, dropping the noted rows between layers. It neither
selects, nor embeds words, nor scatters features, nor computes positions: it is the least that a selection could cost.

Its logits must be those of the pruned model. Where they are not (something else passes between layers, or tokens are
merged there), there is no oracle. A tower that loses tokens inside has none either: what is left of it cannot be
gathered beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ...stages.hook import by_name
from ...stages.parts import Parts
from ..instead import instead

# Largest difference of logits, as a share of their spread, that other kernels for the same sums explain
NOISE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
MERGED = "tokens are merged between layers"
INSIDE = "tokens leave or merge inside the tower"
EXCHANGE = "the first layers of this decoder are given more than hidden states (DeepStack)"
DIFFERS = "this model makes its logits in another way"
MANY = 1 << 62


@dataclass
class Noted:
    """What one run gave its parts.

    Attributes:
        encoding: arguments of `get_image_features`.
        decoder: arguments of the decoder, behind every selection in front of it.
        layers: per layer, arguments of it, without hidden states and cache.
        dropped: layer -> [B, L'] long, which rows of its input were left.
        problem: why there can be no oracle.
    """

    encoding: dict[str, Any] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[int, Tensor] = field(default_factory=dict)
    problem: str = ""

    def on(self, device: Any) -> Noted:
        """The same with all tensors on that device. What several layers were given is copied once."""
        moved: dict[int, Tensor] = {}
        return Noted(**{one.name: _on(getattr(self, one.name), device, moved) for one in fields(self)})


def _on(value: Any, device: Any, moved: dict[int, Tensor]) -> Any:
    """moved: id -> copy of the tensors met so far."""
    if isinstance(value, Tensor):
        if id(value) not in moved:
            moved[id(value)] = value.to(device)
        return moved[id(value)]
    if isinstance(value, dict):
        return {key: _on(one, device, moved) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_on(one, device, moved) for one in value])
    return value


@contextmanager
def around(outer: Any, wrapper: Callable[[Callable, tuple, dict], Any]) -> Iterator[None]:
    """`get_image_features` of the outer module goes through wrapper(method, args, kwargs)."""
    method = outer.get_image_features
    with instead(outer, "get_image_features", lambda *args, **kwargs: wrapper(method, args, kwargs)):
        yield


@contextmanager
def watched(parts: Parts, *, inside: bool) -> Iterator[Noted]:
    """Notes the first run within. Enter it behind `wrap`, so that what its hooks leave is what is seen.

    Args:
        inside: tokens leave between layers: note each of these.
    """
    noted, rows = Noted(), {}

    def encoding(method: Callable, args: tuple, kwargs: dict) -> Any:
        noted.encoding = {"args": args, "kwargs": kwargs}
        return method(*args, **kwargs)

    def decoder(module: Any, args: tuple, kwargs: dict) -> None:
        if not noted.decoder:
            given = by_name(module, args, kwargs)
            noted.decoder = {
                name: value for name, value in given.items() if name not in ("past_key_values", "use_cache")
            }

    def before(i: int, module: Any, args: tuple, kwargs: dict) -> None:
        if len(noted.layers) == i:
            rows[i] = by_name(module, args, kwargs)["hidden_states"]

    def behind(i: int, module: Any, args: tuple, kwargs: dict) -> None:
        if len(noted.layers) != i:
            return
        given = by_name(module, args, kwargs)
        whole, left = rows.pop(i), given["hidden_states"]
        if left.shape != whole.shape:
            places = found(whole, left)
            noted.problem = MERGED if places is None else noted.problem
            noted.dropped[i] = places
        skipped = ("hidden_states", "past_key_values")
        noted.layers.append({name: value for name, value in given.items() if name not in skipped})

    with ExitStack() as stack:
        stack.enter_context(around(parts.outer, encoding))
        hooks = [parts.decoder.register_forward_pre_hook(decoder, with_kwargs=True)]
        for i, layer in enumerate(parts.decoder.layers if inside else []):
            hooks.append(layer.register_forward_pre_hook(_numbered(before, i), with_kwargs=True, prepend=True))
            hooks.append(layer.register_forward_pre_hook(_numbered(behind, i), with_kwargs=True))
        for hook in hooks:
            stack.callback(hook.remove)
        yield noted


def _numbered(hook: Callable, i: int) -> Callable:
    return lambda module, args, kwargs: hook(i, module, args, kwargs)


def found(whole: Tensor, left: Tensor) -> Tensor | None:
    """[B, L'] long, for each row of left [B, L', D] the first row of whole [B, L, D] that equals it bit for bit.

    None if any equals none.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[whole.element_size()]
    drawn = torch.Generator().manual_seed(0)
    weights = torch.randint(-MANY, MANY, (whole.shape[-1],), generator=drawn).to(whole.device)
    marks, wanted = ((x.contiguous().view(bits).long() * weights).sum(-1) for x in (whole, left))
    same = wanted[:, :, None] == marks[:, None]
    places = same.int().argmax(-1)
    again = whole.gather(1, places[..., None].expand(-1, -1, whole.shape[-1]))
    return places if torch.equal(again, left) else None


@dataclass(frozen=True)
class Oracle:
    """Answers the first token's logits from pixels and notes."""

    model: Any
    parts: Parts
    noted: Noted

    def on(self, device: Any) -> Oracle:
        """With its notes there; it can be called where they are on the model's device."""
        return replace(self, noted=self.noted.on(device))

    def __call__(self) -> Tensor:
        """[B, V] logits."""
        self.parts.outer.get_image_features(*self.noted.encoding["args"], **self.noted.encoding["kwargs"])
        cache = DynamicCache(config=self.parts.decoder.config)
        hidden = self._through_layers(cache) if self.noted.layers else self._through_decoder(cache)
        return self.model.get_output_embeddings()(hidden[:, -1])

    def _through_decoder(self, cache: DynamicCache) -> Tensor:
        return self.parts.decoder(**self.noted.decoder, past_key_values=cache, use_cache=True).last_hidden_state

    def _through_layers(self, cache: DynamicCache) -> Tensor:
        hidden = self.noted.decoder["inputs_embeds"]
        for i, (layer, given) in enumerate(zip(self.parts.decoder.layers, self.noted.layers, strict=True)):
            if i in self.noted.dropped:
                places = self.noted.dropped[i]
                hidden = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
            out = layer(hidden, **given, past_key_values=cache)
            hidden = out[0] if isinstance(out, tuple) else out
        return self.parts.decoder.norm(hidden)


def checked(model: Any, parts: Parts, noted: Noted, logits: Tensor) -> tuple[Oracle | None, float | None, str]:
    """The oracle, the largest difference of its logits from these [B, V], and, where it cannot be had, why.

    A difference is told as a share of the logits' standard deviation.
    """
    if noted.problem:
        return None, None, noted.problem
    made = Oracle(model, parts, noted)
    apart = float((made().float() - logits.float()).abs().max() / logits.float().std())
    if apart <= NOISE[model.dtype]:
        return made, apart, ""
    return None, apart, EXCHANGE if noted.layers else DIFFERS

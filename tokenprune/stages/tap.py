"""Reading queries and keys where an attention module hands them to its implementation.

The module gets a copy of its config with an attention implementation of our own name, registered with transformers. It
shows a note what it is handed and calls the implementation that the model uses, with a bias on keys if the note answers
one. Everything else goes on reading the config it read before.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .bias import in_channels, with_bias

PREFIX = "tokenprune_"

# (module, query [B, H, q, d], key [B, Hk, K, d], attention mask, what else the implementation is given) -> None, or
# [B or 1, 1, 1, K] float32 that is added to the scores
Note = Callable[[nn.Module, Tensor, Tensor, Any, dict[str, Any]], Tensor | None]


def listen(attention: nn.Module, note: Note) -> Callable[[], None]:
    """Show `note` every call of the module's attention implementation. Returns what undoes it."""
    original = attention.config
    config = object.__new__(_tapped_class(type(original)))  # copy.copy of one that is tapped is the model's own
    vars(config).update(vars(original))
    config._tokenprune = original, note
    attention.config = config

    def undo() -> None:
        attention.config = original

    return undo


def scale_of(query: Tensor, kwargs: dict[str, Any]) -> float:
    """The factor on attention scores, from what an implementation was given."""
    scale = kwargs.get("scaling")
    return query.shape[-1] ** -0.5 if scale is None else scale


def _tapped(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any):
    """The attention implementation of the model, after a note."""
    original, note = module.config._tokenprune
    bias = note(module, query, key, attention_mask, kwargs)
    eager = _beside(type(_itself_of(module))).get("eager_attention_forward")
    function = ALL_ATTENTION_FUNCTIONS.get_interface(original._attn_implementation, eager)
    inner = _WithConfig(module, original)
    if bias is None:
        return function(inner, query, key, value, attention_mask, **kwargs)
    if "flash" not in str(original._attn_implementation):
        return function(inner, query, key, value, with_bias(attention_mask, bias, query.dtype), **kwargs)
    width, kwargs = value.shape[-1], {**kwargs, "scaling": scale_of(query, kwargs)}
    wide = in_channels(query, key, value, bias, kwargs["scaling"])
    output, weights = function(inner, *wide, attention_mask, **kwargs)
    return output[..., :width], weights


@functools.cache
def _beside(cls: type) -> dict[str, Any]:
    """The globals of the file that a module's class is in."""
    return inspect.unwrap(cls.forward).__globals__


class _WithConfig:
    """An attention module as its implementation sees it: with the config it had."""

    def __init__(self, module: nn.Module, config: Any):
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _itself_of(module: Any) -> nn.Module:
    """The attention module itself, where another listener hands on what it made of it."""
    while type(module) is _WithConfig:
        module = module._module
    return module


_CLASSES: dict[type, type] = {}


def _tapped_class(cls: type) -> type:
    """A config class that names our implementation. Its copies, deep or pickled, are the config that was there."""
    if cls not in _CLASSES:
        methods: dict[str, Any] = {"_attn_implementation": property(_registered_name)}
        methods["__reduce_ex__"] = lambda self, protocol: (_itself, (self._tokenprune[0],))
        methods["__deepcopy__"] = lambda self, memo: copy.deepcopy(self._tokenprune[0], memo)
        _CLASSES[cls] = type(cls.__name__, (cls,), methods)
    return _CLASSES[cls]


def _registered_name(config: Any) -> str:
    """Of our implementation over the one that the config that was there names now: it may be changed while wrapped."""
    name = PREFIX + str(config._tokenprune[0]._attn_implementation)
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _tapped)
    return name


def _itself(config: Any) -> Any:
    return config

"""Module hooks of ours: known as such, and not taken over by a copy of the module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


class Hook:
    """A function to register as a module hook. A deep or pickled copy of the module gets one that does nothing."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __reduce__(self) -> tuple:
        return _copied, ()


def nothing(*args: Any) -> None:
    """What is left of a hook in a copy."""


def _copied() -> Callable[..., None]:
    return nothing


def by_name(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a forward by name."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(_names(type(module)), args, strict=False)), **kwargs}


def first_name(module: nn.Module) -> str:
    """Name of the first argument of a forward."""
    return _names(type(module))[0]


@functools.cache
def _names(cls: type) -> list[str]:
    """Of the arguments of a module's forward."""
    return list(inspect.signature(cls.forward).parameters)[1:]

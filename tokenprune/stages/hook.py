"""Module hooks of ours: known as such, and not taken over by a copy of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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

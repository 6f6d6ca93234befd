"""Module hooks of ours: known as such, and not taken over by a deep copy of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Hook:
    """A function to register as a module hook. A deep copy of the module gets one that does nothing."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return nothing


def nothing(*args: Any) -> None:
    """What is left of a hook in a deep copy."""

"""One object's method, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def instead(thing: Any, name: str, function: Callable) -> Iterator[None]:
    """Within, the method of this object, not of its class, is `function`."""
    before = vars(thing).get(name)
    setattr(thing, name, function)
    try:
        yield
    finally:
        delattr(thing, name)
        if before is not None:
            setattr(thing, name, before)

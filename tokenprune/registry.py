"""Policies by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import TypeVar

from .errors import InvalidArgumentError, UnknownPolicyError, nearest

_POLICIES: dict[str, type] = {}
T = TypeVar("T", bound=type)


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a policy available as `tokenprune.wrap(model, name)`.

    Raises:
        InvalidArgumentError: the name is taken by another class.
    """

    def decorate(cls: T) -> T:
        taken = _POLICIES.get(name)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise InvalidArgumentError(f"name={name!r} is taken by {taken.__qualname__}: register under another name.")
        _POLICIES[name] = cls
        cls.name = name
        return cls

    return decorate


def list_policies(pattern: str = "*") -> list[str]:
    """Registered names that match a shell-style wildcard (`"*prune*"`), sorted."""
    return sorted(fnmatch.filter(_POLICIES, pattern))


def get_policy(name: str) -> type:
    """The policy class registered under `name`.

    Raises:
        UnknownPolicyError: no such name; the message suggests the nearest one.
    """
    try:
        return _POLICIES[name]
    except KeyError:
        hint = nearest(name, _POLICIES) or f": known are {', '.join(list_policies())}"
        raise UnknownPolicyError(f"policy={name!r} is not registered{hint}.") from None

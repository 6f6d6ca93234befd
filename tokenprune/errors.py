"""Every error a user can meet. Each message is one sentence that names the argument, the value found and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AlreadyWrappedError",
    "InputError",
    "InvalidArgumentError",
    "InvalidFeaturesError",
    "NotEngagedError",
    "PolicyError",
    "PredictorError",
    "StaleCacheError",
    "TokenPruneError",
    "TrainingError",
    "UnknownPolicyError",
    "UnsupportedModelError",
    "UnsupportedPolicyError",
]


class TokenPruneError(Exception):
    """Base of all errors raised by tokenprune."""


class InvalidArgumentError(TokenPruneError, ValueError):
    """An argument has a value that cannot be used."""


class UnknownPolicyError(TokenPruneError, KeyError):
    """No policy is registered under this name."""

    def __str__(self) -> str:  # KeyError would print the repr of its message
        return str(self.args[0])


class UnsupportedModelError(TokenPruneError, TypeError):
    """The model, or the mode it is used in, is outside what tokenprune can prune exactly."""


class UnsupportedPolicyError(TokenPruneError, TypeError):
    """The policy needs something that this model or this call cannot give."""


class AlreadyWrappedError(TokenPruneError, RuntimeError):
    """The model is wrapped already, or is in use while it should be wrapped."""


class NotEngagedError(TokenPruneError, RuntimeError):
    """A forward had visual tokens, the budget asked to remove some, and none was removed."""


class InvalidFeaturesError(TokenPruneError, ValueError):
    """The visual features are unusable (NaN or Inf)."""


class PolicyError(TokenPruneError, RuntimeError):
    """A policy answered something that is no selection of its input."""


class PredictorError(TokenPruneError, ValueError):
    """A trained module cannot be loaded, or belongs to another model."""


class TrainingError(TokenPruneError, RuntimeError):
    """A training cannot go on; what it saved last stays."""


class StaleCacheError(TokenPruneError, RuntimeError):
    """A cache that went through a pruned forward is continued without the handle that pruned it."""


class InputError(TokenPruneError, ValueError):
    """A file or prompt given to the command line or the demo cannot be used."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: BaseException) -> str:
    """What an error says, to be quoted in a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")

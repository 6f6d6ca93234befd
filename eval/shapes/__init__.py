"""A small vision-language model trained in this repository, and the scenes it is asked about.

Everything is loaded on first use, so that importing this package costs nothing.
"""

from importlib import import_module

_HOMES = {
    "inference": ("CHECKPOINT", "answer", "load", "load_clip", "prompt", "takes_features"),
    "heldout": ("Sample", "easy_vqa", "held_out"),
    "evaluate": ("accuracy",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)

"""Facts about model families: one small file each, and the lookup."""

from ..errors import InvalidArgumentError
from .base import Adapter, Features, Grid, Layout
from .gemma import GEMMA
from .glm import GLM
from .llava import LLAVA
from .others import OTHERS
from .qwen import QWEN
from .tiled import TILED

ADAPTERS: list[Adapter] = [*LLAVA, *QWEN, *GEMMA, *GLM, *TILED, *OTHERS]


def register(adapter: Adapter) -> Adapter:
    """Add the adapter of a family. It vouches for the family: try it against a computation by hand first.

    Raises:
        InvalidArgumentError: the family has one already.
    """
    if lookup(adapter.model_type) is not None:
        raise InvalidArgumentError(f"model_type={adapter.model_type!r} has an adapter already: give another one.")
    ADAPTERS.append(adapter)
    return adapter


def lookup(model_type: str) -> Adapter | None:
    """The adapter of a `config.model_type`, or None."""
    return next((adapter for adapter in ADAPTERS if adapter.model_type == model_type), None)


def supported() -> list[str]:
    """Model types with an adapter, sorted."""
    return sorted(adapter.model_type for adapter in ADAPTERS)


__all__ = ["ADAPTERS", "Adapter", "Features", "Grid", "Layout", "lookup", "register", "supported"]

"""Facts about model families: one small file each, and the lookup."""

from .base import Adapter, Features, Grid, Layout
from .gemma import GEMMA
from .glm import GLM
from .llava import LLAVA
from .others import OTHERS
from .qwen import QWEN
from .tiled import TILED

ADAPTERS: tuple[Adapter, ...] = (*LLAVA, *QWEN, *GEMMA, *GLM, *TILED, *OTHERS)


def lookup(model_type: str) -> Adapter | None:
    """The adapter of a `config.model_type`, or None."""
    return next((adapter for adapter in ADAPTERS if adapter.model_type == model_type), None)


def supported() -> list[str]:
    """Model types with an adapter, sorted."""
    return sorted(adapter.model_type for adapter in ADAPTERS)


__all__ = ["ADAPTERS", "Adapter", "Features", "Grid", "Layout", "lookup", "supported"]

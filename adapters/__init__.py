"""Facts about model families: one small file each, and the lookup."""

from .base import Adapter
from .llava import LLAVA
from .qwen2_5_vl import QWEN2_5_VL

ADAPTERS: tuple[Adapter, ...] = (LLAVA, QWEN2_5_VL)


def lookup(model_type: str) -> Adapter | None:
    """The adapter of a `config.model_type`, or None."""
    return next((adapter for adapter in ADAPTERS if adapter.model_type == model_type), None)


def supported() -> list[str]:
    """Model types with an adapter, sorted."""
    return sorted(adapter.model_type for adapter in ADAPTERS)


__all__ = ["ADAPTERS", "Adapter", "lookup", "supported"]

"""LLaVA-1.5 and its copies: CLIP or SigLIP tower, one row per patch, 1-D positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Adapter, Grid


def _lengths(config: Any, args: tuple, kwargs: dict[str, Any], output: Tensor) -> list[int]:
    return [output.shape[1]] * output.shape[0]  # [images, tokens, D]


def _grid(config: Any, n: int, positions: Tensor | None) -> Grid | None:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return (1, side, side) if side * side == n else None


def _problem(config: Any) -> str | None:
    tower = config.vision_config.model_type
    if tower in ("clip_vision_model", "siglip_vision_model"):
        return None
    return f"its vision tower is {tower!r}, and only clip_vision_model and siglip_vision_model are supported so far"


LLAVA = Adapter(
    model_type="llava",
    tower="multi_modal_projector",
    lengths=_lengths,
    grid=_grid,
    projector="multi_modal_projector",
    problem=_problem,
)

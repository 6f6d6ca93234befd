"""Qwen-VL and its relatives: packed towers whose merger joins 2 x 2 patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from .base import Adapter, Features
from .layouts import grid_thw, neighbours
from .projectors import behind_each_other


def windows(config: Any, features: Features, entered: Tensor) -> Tensor:
    """The tower works, and merges, in the order of its attention windows."""
    vision = config.vision_config
    grid = features.arguments[f"{features.modality}_grid_thw"]
    index, _ = get_vision_window_index(grid, vision.spatial_merge_size, vision.window_size, vision.patch_size)
    return neighbours(config, features, entered)[index.argsort().to(entered.device, non_blocking=True)]


def inside_windows(config: Any, features: Features, values: Tensor, patches: int) -> Tensor:
    return windows(config, features, values)


MERGER = {
    "layouts": grid_thw,
    "merger": "visual.merger",
    "project": behind_each_other("visual.merger"),
    "towers": ("visual",),
}
NEIGHBOURS = {**MERGER, "patches": neighbours}
WINDOWS = {**MERGER, "patches": windows, "inside": inside_windows}

QWEN = (
    Adapter(model_type="qwen2_vl", **NEIGHBOURS),
    Adapter(model_type="qwen2_5_vl", **WINDOWS),
    Adapter(model_type="qwen3_vl", **NEIGHBOURS),
    Adapter(model_type="qwen3_vl_moe", **NEIGHBOURS),
    Adapter(model_type="qwen3_5", **NEIGHBOURS),
    Adapter(model_type="qwen3_5_moe", **NEIGHBOURS),
    Adapter(
        model_type="qwen4_exp",
        **NEIGHBOURS,
        between_layers="its layers look up runs of neighbouring tokens, which would break apart",
    ),
    Adapter(model_type="qwen2_5_omni_thinker", **WINDOWS),
    Adapter(model_type="qwen3_omni_moe_thinker", **NEIGHBOURS),
    Adapter(model_type="cohere_compass", **NEIGHBOURS),
    Adapter(model_type="exaone4_5", **WINDOWS),
)

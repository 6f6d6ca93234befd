"""Families with a mechanism of their own, or none that matters here."""

from __future__ import annotations

from typing import Any

from .base import Adapter, Features, Layout
from .layouts import filled, grid_thw, neighbours, one_to_one, squares
from .qwen import windows

ALIGNER = {"layouts": squares, "merger": "aligner", "patches": one_to_one}
NEIGHBOURS = {"layouts": grid_thw, "merger": "multi_modal_projector", "patches": neighbours}


def _tokens_thw(config: Any, features: Features) -> list[Layout]:
    """Inkling 2: sizes from `image_grid_thw` are in tokens."""
    return [filled((t, h, w)) for t, h, w in features.arguments["image_grid_thw"].tolist()]


def _grid_hw(config: Any, features: Features) -> list[Layout]:
    return [filled((1, h // 2, w // 2)) for h, w in features.arguments["image_grid_hw"].tolist()]


OTHERS = (
    Adapter(model_type="aria", join="run"),
    Adapter(model_type="janus", **ALIGNER),
    Adapter(model_type="deepseek_vl", **ALIGNER),
    Adapter(model_type="deepseek_vl_hybrid", **ALIGNER),
    Adapter(model_type="molmo2"),
    Adapter(model_type="inkling_mm_model", join="run", crops=False),
    Adapter(model_type="inkling2", layouts=_tokens_thw),
    Adapter(model_type="muse_glimmer", layouts=grid_thw),
    Adapter(model_type="muse_spark", layouts=grid_thw),
    Adapter(model_type="nemotron_h_omni", layouts=_grid_hw),
    Adapter(model_type="cosmos3_edge", layouts=grid_thw, merger="projector", patches=neighbours),
    Adapter(model_type="cosmos3_omni", layouts=grid_thw, merger="visual.merger", patches=neighbours),
    Adapter(model_type="lfm3_vl", **NEIGHBOURS),
    Adapter(model_type="hyperclovax_vision_v2", layouts=grid_thw, merger="vision_model.merger", patches=windows),
)

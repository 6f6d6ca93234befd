"""Families with a mechanism of their own, or none that matters here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Adapter, Features, Layout
from .layouts import filled, grid_thw, neighbours, one_to_one, squares
from .projectors import Find, behind_each_other, single
from .qwen import inside_windows, windows

ALIGNER = {
    "layouts": squares,
    "merger": "aligner",
    "patches": one_to_one,
    "project": single("aligner"),
    "towers": ("vision_model",),
}


def _grids(merger: str, tower: str) -> dict[str, Any]:
    """Sizes from `image_grid_thw`, patches of a token behind each other."""
    return {
        "layouts": grid_thw,
        "merger": merger,
        "patches": neighbours,
        "project": behind_each_other(merger),
        "towers": (tower,),
    }


def _two_mergers(find: Find, x: Tensor) -> Tensor:
    """HyperCLOVA X: the tower's merger, then a projector."""
    return find("projector")(behind_each_other("vision_model.merger")(find, x))


def _tokens_thw(config: Any, features: Features) -> list[Layout]:
    """Inkling 2: sizes from `image_grid_thw` are in tokens."""
    return [filled((t, h, w)) for t, h, w in features.arguments["image_grid_thw"].tolist()]


def _grid_hw(config: Any, features: Features) -> list[Layout]:
    return [filled((1, h // 2, w // 2)) for h, w in features.arguments["image_grid_hw"].tolist()]


OTHERS = (
    Adapter(model_type="aria", join="run"),
    Adapter(model_type="janus", **ALIGNER),
    Adapter(model_type="deepseek_vl", **ALIGNER),
    Adapter(model_type="deepseek_vl_hybrid", **(ALIGNER | {"project": None})),
    Adapter(model_type="molmo2"),
    Adapter(model_type="inkling_mm_model", join="run", crops=False),
    Adapter(
        model_type="inkling2",
        layouts=_tokens_thw,
        between_layers="its layers read the states of all tokens at earlier ones",
    ),
    Adapter(model_type="muse_glimmer", layouts=grid_thw),
    Adapter(model_type="muse_spark", layouts=grid_thw),
    Adapter(model_type="nemotron_h_omni", layouts=_grid_hw),
    Adapter(model_type="cosmos3_edge", **_grids("projector", "visual")),
    Adapter(model_type="cosmos3_omni", **_grids("visual.merger", "visual")),
    Adapter(model_type="lfm3_vl", **_grids("multi_modal_projector", "vision_tower")),
    Adapter(
        model_type="hyperclovax_vision_v2",
        **(
            _grids("vision_model.merger", "vision_model")
            | {"patches": windows, "inside": inside_windows, "project": _two_mergers}
        ),
    ),
)

"""GLM-V and others that pack images of any size into one sequence of patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Adapter, Features, Layout
from .layouts import crops, filled, grid_thw, in_grids, merge_size, neighbours
from .projectors import behind_each_other, convolved, in_a_dimension


def _by_merge_size(config: Any, features: Features) -> list[Layout]:
    """VideoLLaMA 3: merge sizes differ by image; a crop per frame, since the model may drop rows of frames."""
    kind = features.modality
    grids, merges = features.arguments[f"{kind}_grid_thw"].tolist(), features.arguments[f"{kind}_merge_sizes"].tolist()
    return [crops([(1, h // m, w // m)] * t) for (t, h, w), m in zip(grids, merges, strict=True)]


def _two_steps(config: Any, features: Features) -> list[Layout]:
    """ERNIE: of a video, two temporal steps make one."""
    merge, grids = merge_size(config), features.arguments[f"{features.modality}_grid_thw"].tolist()
    return [filled(((t + 1) // 2, h // merge, w // merge)) for t, h, w in grids]


def _bordered_lines(config: Any, features: Features) -> list[Layout]:
    """HunYuan-VL: a begin row, lines that each end with a newline row, an end row."""
    merge, result = merge_size(config), []
    for _, h, w in features.arguments["image_grid_thw"].tolist():
        lines, width = h // merge, w // merge
        inside = torch.cat([torch.zeros(lines, width), -torch.ones(lines, 1)], 1).long()
        ends = 1 + (torch.arange(lines) * (width + 1) + width)[:, None].expand(-1, width + 1)
        ends = torch.where(inside < 0, -1, ends).flatten()
        border = torch.tensor([-1])
        crop = torch.cat([border, inside.flatten(), border])
        result.append(Layout(crop=crop, grids=((1, lines, width),), line_end=torch.cat([border, ends, border])))
    return result


def _as_it_is(config: Any, features: Features, entered: Tensor) -> Tensor:
    """The merger's input has the patches of a token in a dimension of its own."""
    return entered


def _convolved(config: Any, features: Features, entered: Tensor) -> Tensor:
    """A convolution over [n, d, 2, 2] merges the patches of a token."""
    return entered.flatten(2).mT


def _sparse(config: Any) -> str | None:
    if "minimax_m3_sparse" in (getattr(config.text_config, "layer_types", None) or ()):
        return "its sparse attention takes position ids for cache slots, which differ once tokens are gone"
    return None


CONVOLVED = {
    "layouts": grid_thw,
    "merger": "visual.downsample",
    "patches": _convolved,
    "project": convolved,
    "towers": ("visual",),
}

GLM = (
    Adapter(model_type="glm4v", **CONVOLVED),
    Adapter(model_type="glm4v_moe", **CONVOLVED),
    Adapter(model_type="glm46v", **CONVOLVED),
    Adapter(model_type="glm_ocr", **CONVOLVED),
    Adapter(model_type="glm5_next", **CONVOLVED, between_layers="its layers index tokens by a mask of all of them"),
    Adapter(model_type="video_llama_3", layouts=_by_merge_size, row_mask="video_compression_mask"),
    Adapter(model_type="ernie4_5_vl_moe", layouts=_two_steps),
    Adapter(model_type="paddleocr_vl", layouts=grid_thw),
    Adapter(model_type="hunyuan_vl", layouts=_bordered_lines),
    Adapter(
        model_type="kimi_k25",
        layouts=grid_thw,
        merger="mm_projector",
        patches=_as_it_is,
        project=in_a_dimension("mm_projector"),
        towers=("vision_tower",),
        inside=in_grids(grid_thw),
    ),
    Adapter(
        model_type="minimax_m3_vl",
        layouts=grid_thw,
        merger="multi_modal_projector",
        patches=neighbours,
        project=behind_each_other("multi_modal_projector"),
        towers=("vision_tower",),
        problem=_sparse,
    ),
    Adapter(
        model_type="dots3_note",
        layouts=grid_thw,
        merger="vision_tower.merger",
        patches=neighbours,
        project=behind_each_other("vision_tower.merger"),
        towers=("vision_tower",),
    ),
)

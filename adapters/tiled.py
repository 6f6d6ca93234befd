"""Families that cut images into tiles of one size, or break the rows of an image with tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .base import Adapter, Features, Layout, whole
from .layouts import filled, image_sizes, in_grids, in_squares, merged, square, squares, stacked
from .projectors import gated, side_by_side, two_layers, unfolded


def _split_samples(rows: list[int], tile: int, *, grid: bool = True) -> list[Layout]:
    """An entry per sample, with all tiles of all its images."""
    return [whole(tile, square(tile) if grid else None) for n in rows for _ in range(n // tile)]


def _idefics3(config: Any, features: Features) -> list[Layout]:
    vision = config.vision_config
    return _split_samples(features.rows, (vision.image_size // vision.patch_size // config.scale_factor) ** 2)


def _granite_docling(config: Any, features: Features) -> list[Layout]:
    vision, fine = config.vision_config, features.arguments.get("tile_fine_mask") is not None
    side = vision.image_size // vision.patch_size // (vision.scale_factor // (2 if fine else 1))
    return _split_samples(features.rows, side**2)


def _idefics2(config: Any, features: Features) -> list[Layout]:
    """Latents of a resampler, which lie nowhere."""
    return _split_samples(features.rows, config.perceiver_config.resampler_n_latents, grid=False)


def _slices(config: Any, features: Features) -> list[Layout]:
    """MiniCPM: sizes of slices, or frames, in patches; how many make a token follows from the count of rows."""
    sizes = features.arguments["target_sizes_videos" if features.modality == "video" else "target_sizes"].tolist()
    return [merged(n, (1, h, w)) for n, (h, w) in zip(features.rows, sizes, strict=True)]


def _lfm2(config: Any, features: Features) -> list[Layout]:
    factor = config.downsample_factor
    return [filled((1, int(h) // factor, int(w) // factor)) for h, w in features.arguments["spatial_shapes"]]


def _unfolded(config: Any, features: Features, entered: Tensor) -> Tensor:
    """`torch.nn.functional.unfold`: patches of one token follow each other inside every channel."""
    width = config.vision_config.hidden_size
    return entered.reshape(-1, width, entered.shape[-1] // width).mT


def _without_breaks(config: Any, features: Features) -> list[Layout]:
    return [replace(one, breaks=False) for one in image_sizes(config, features)]


def _last_apart(config: Any, features: Features) -> list[Layout]:
    """DeepSeek-OCR 2: views of learned queries, which lie nowhere, and one separator row at the end of each image."""
    return [
        Layout(crop=torch.cat([torch.zeros(n - 1, dtype=torch.long), torch.tensor([-1])]), grids=(None,))
        for n in features.rows
    ]


def _keeps_prompt(config: Any) -> str:
    return "its cache keeps as many slots as the unpruned prompt had, so answers would fill the places of pruned tokens"


UNFOLDED = {
    "merger": "multi_modal_projector.patch_merger.merging_layer",
    "patches": _unfolded,
    "project": unfolded,
    "towers": ("vision_tower",),
    "inside": in_grids(image_sizes),
}
SQUARES = {"patches": stacked, "towers": ("vision_tower",), "inside": in_squares}
SHUFFLED_BEFORE = {**SQUARES, "merger": "multi_modal_projector", "project": side_by_side("multi_modal_projector")}
SHUFFLED_INSIDE = {**SQUARES, "merger": "multi_modal_projector.linear_1", "project": gated}
CONNECTOR = {
    **SQUARES,
    "merger": "connector.modality_projection",
    "project": side_by_side("connector.modality_projection"),
    "towers": ("vision_model",),
}

TILED = (
    Adapter(model_type="internvl", layouts=squares, join="near", **SHUFFLED_BEFORE),
    Adapter(model_type="qianfan_ocr", layouts=squares, join="near", **SHUFFLED_BEFORE),
    Adapter(model_type="aya_vision", layouts=squares, join="near", **SHUFFLED_INSIDE),
    Adapter(model_type="cohere2_vision", layouts=squares, join="near", **SHUFFLED_INSIDE),
    Adapter(model_type="got_ocr2", layouts=squares, join="near"),
    Adapter(model_type="ovis2", layouts=squares, join="near"),
    Adapter(
        model_type="lfm2_vl",
        layouts=_lfm2,
        join="near",
        merger="multi_modal_projector.linear_1",
        patches=stacked,
        project=two_layers,
    ),
    Adapter(model_type="llama4", layouts=squares, join="global"),
    Adapter(model_type="idefics3", layouts=_idefics3, join="global", **CONNECTOR),
    Adapter(model_type="smolvlm", layouts=_idefics3, join="global", **CONNECTOR),
    Adapter(model_type="granite_docling", layouts=_granite_docling, join="first"),
    Adapter(model_type="idefics2", layouts=_idefics2),
    Adapter(model_type="minicpmv4_6", layouts=_slices, join="first"),
    Adapter(model_type="minicpmv4_7", layouts=_slices, join="first"),
    Adapter(model_type="minicpm_ocr", layouts=_slices, join="first", merger="merger.mlp.0", patches=stacked),
    Adapter(model_type="mistral3", layouts=image_sizes, **UNFOLDED),
    Adapter(model_type="mistral_large4", layouts=image_sizes, **UNFOLDED),
    Adapter(model_type="lighton_ocr", layouts=_without_breaks),
    Adapter(model_type="deepseek_ocr2", layouts=_last_apart),
    Adapter(model_type="step3p7"),
    Adapter(model_type="unlimited_ocr", problem=_keeps_prompt),
)

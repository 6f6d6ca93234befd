"""Qwen-VL and its relatives: packed towers, patch mergers, M-RoPE."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .base import IMAGE, MROPE, TEXT, VIDEO, VISION_END, VISION_START, Family, Pixels, bordered, noise, types

TOWER = {
    "depth": 3,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
SPECIAL = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}


def _qwen2_5_vl() -> Any:
    vision = {
        **TOWER,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "window_size": 16,
        "fullatt_block_indexes": [2],
        "tokens_per_second": 2,
    }
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**TEXT, "rope_parameters": MROPE}, **SPECIAL
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _packed(grids: list[list[int]], names: tuple[str, str]) -> tuple[dict[str, torch.Tensor], list[int]]:
    patches = [t * h * w for t, h, w in grids]
    values = noise(sum(patches), 3 * 2 * 4 * 4)
    return dict(zip(names, (values, torch.tensor(grids)), strict=True)), [count // 4 for count in patches]


def images(counts: tuple[int, ...]) -> Pixels:
    """Two sizes of images, in patches of a [rows, 3 * 2 * 4 * 4] matrix."""
    grids = [[1, 8 + 4 * (i % 2), 12] for i in range(sum(counts))]
    pixels, lengths = _packed(grids, ("pixel_values", "image_grid_thw"))
    return pixels, bordered(lengths)


def videos(counts: tuple[int, ...]) -> Pixels:
    """Three temporal steps, in one block."""
    grids = [[3, 8, 4 + 4 * (i % 2)] for i in range(sum(counts))]
    pixels, lengths = _packed(grids, ("pixel_values_videos", "video_grid_thw"))
    return pixels, bordered(lengths, VIDEO)


FAMILIES = [
    Family("qwen2_5_vl", _qwen2_5_vl, images, extra=types),
    Family("qwen2_5_vl-video", _qwen2_5_vl, videos, modality="video", extra=types),
]

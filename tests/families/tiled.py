"""Towers of one size that see an image as several tiles, and others that merge patches before the decoder."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from .anyres import PIXTRAL, pixtral
from .base import (
    BREAK,
    GLOBAL,
    IMAGE,
    SAM,
    SIGLIP,
    TEXT,
    VISION_END,
    VISION_START,
    Family,
    Pixels,
    noise,
    text,
)

MARKS = (156, 157)
SEPARATORS = (156, 157)
NEWLINE, NEWLINES = 10, 11

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 4,
}
TILE = 16
LARGE_SIGLIP = {**SIGLIP, "image_size": 32}


def _cohere2(window: int) -> dict[str, Any]:
    return text(
        "cohere2", sliding_window=window, layer_types=["sliding_attention", "full_attention"] * 2, logit_scale=1.0
    )


def _internvl() -> Any:
    vision = {**TOWER, "image_size": [32, 32], "patch_size": [4, 4]}
    config = transformers.InternVLConfig(vision_config=vision, text_config=text("qwen2"), image_token_id=IMAGE)
    return transformers.InternVLForConditionalGeneration(config)


def _aya_vision() -> Any:
    config = transformers.AyaVisionConfig(
        vision_config=LARGE_SIGLIP, text_config=_cohere2(24), image_token_id=IMAGE, downsample_factor=2
    )
    return transformers.AyaVisionForConditionalGeneration(config)


def _cohere2_vision() -> Any:
    config = transformers.Cohere2VisionConfig(
        vision_config=LARGE_SIGLIP,
        text_config=_cohere2(64),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    return transformers.Cohere2VisionForConditionalGeneration(config)


def _idefics3() -> Any:
    config = transformers.Idefics3Config(
        vision_config=TOWER, text_config=text("llama"), image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    return transformers.Idefics3ForConditionalGeneration(config)


def _smolvlm() -> Any:
    config = transformers.SmolVLMConfig(
        vision_config=TOWER, text_config=text("llama"), image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    return transformers.SmolVLMForConditionalGeneration(config)


def _llama4() -> Any:
    """Three chunked layers, of chunks shorter than the prompt, and a last one without positions."""
    vision = {
        **TOWER,
        "intermediate_size": 128,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    }
    decoder = {
        **TEXT,
        "head_dim": 16,
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
    }
    config = transformers.Llama4Config(vision_config=vision, text_config=decoder, image_token_index=IMAGE)
    return transformers.Llama4ForConditionalGeneration(config)


def _mistral3() -> Any:
    config = transformers.Mistral3Config(
        vision_config={**PIXTRAL, "image_size": 48},
        text_config=text("mistral", sliding_window=None),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def _got_ocr2() -> Any:
    config = transformers.GotOcr2Config(vision_config=SAM, text_config=text("qwen2"), image_token_id=IMAGE)
    return transformers.GotOcr2ForConditionalGeneration(config)


def _lfm2_vl() -> Any:
    vision = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "patch_size": 4,
        "num_patches": 64,
        "vision_use_head": False,
    }
    decoder = text("lfm2", layer_types=["conv", "full_attention"] * 2, conv_L_cache=3, block_auto_adjust_ff_dim=False)
    config = transformers.Lfm2VlConfig(
        vision_config=vision,
        text_config=decoder,
        image_token_id=IMAGE,
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )
    return transformers.Lfm2VlForConditionalGeneration(config)


def _counts(counts: tuple[int, ...]) -> list[int]:
    """Tiles of each image: two and the whole image, or the whole image only."""
    return [(3, 1)[i % 2] for i in range(sum(counts))]


def _joined(counts: tuple[int, ...], *, size: int = 32) -> Pixels:
    """All tiles of an image in one run."""
    tiles = _counts(counts)
    return {"pixel_values": noise(sum(tiles), 3, size, size)}, [
        [VISION_START, *[IMAGE] * TILE * n, VISION_END] for n in tiles
    ]


def _joined_large(counts: tuple[int, ...]) -> Pixels:
    return _joined(counts, size=64)


def _frames(counts: tuple[int, ...]) -> Pixels:
    """Videos of three frames, which are images of one tile, each behind its number and with newlines between them."""
    n, frames = sum(counts), 3
    video = []
    for i in range(frames):
        video += [NEWLINE] * (i > 0) + [20 + i, VISION_START, *[IMAGE] * TILE, VISION_END]
    return {"pixel_values": noise(frames * n, 3, 32, 32)}, [video] * n


def _aya(counts: tuple[int, ...]) -> Pixels:
    """Numbered tiles, then the whole image, each behind its mark."""
    pixels, _ = _joined(counts)
    blocks = []
    for n in _counts(counts):
        marks = [*MARKS[: n - 1], GLOBAL]
        blocks.append([VISION_START, *(i for mark in marks for i in (mark, *[IMAGE] * TILE)), VISION_END])
    return pixels, blocks


def _cohere(counts: tuple[int, ...]) -> Pixels:
    """A break behind each tile."""
    pixels, _ = _joined(counts)
    tile = [*[IMAGE] * TILE, BREAK]
    return pixels, [[VISION_START, *tile * n, VISION_END] for n in _counts(counts)]


def _padded(tiles: list[list[int]]) -> dict[str, Tensor]:
    """[samples, most tiles of a sample, 3, 32, 32] pixels, zero where a sample has less; tiles of each image."""
    sums = [sum(sample) for sample in tiles]
    values = noise(len(sums), max(sums), 3, 32, 32)
    mask = torch.arange(max(sums)) < torch.tensor(sums)[:, None]
    return {
        "pixel_values": values * mask[..., None, None, None],
        "pixel_attention_mask": mask[..., None, None].expand(-1, -1, 32, 32).long(),
    }


def _idefics(counts: tuple[int, ...]) -> Pixels:
    """A row of two tiles behind their places, a blank line and the whole image; or the latter only."""
    tiles = _counts(counts)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    pixels = _padded([tiles[start : start + count] for start, count in zip(starts, counts, strict=True)])
    whole = [VISION_START, GLOBAL, *[IMAGE] * TILE, VISION_START]
    row = [i for mark in MARKS for i in (VISION_START, mark, *[IMAGE] * TILE)]
    return pixels, [[*row, NEWLINES, *whole] if n > 1 else whole for n in tiles]


def _smolvlm_frames(counts: tuple[int, ...]) -> Pixels:
    """An introduction, three frames behind their times, a blank line."""
    frames = 3
    video = [20, 21, NEWLINE]
    for i in range(frames):
        video += [NEWLINE, 30 + i, VISION_START, GLOBAL, *[IMAGE] * TILE, VISION_START]
    return _padded([[frames] * count for count in counts]), [[*video, NEWLINES]] * sum(counts)


def _llama(counts: tuple[int, ...]) -> Pixels:
    """A row of two tiles with a separator between them and another behind, and the whole image behind its mark."""
    pixels, _ = _joined(counts)
    tile, (column, row) = [IMAGE] * TILE, SEPARATORS
    tiles = {1: [], 3: [*tile, column, *tile, row]}
    return pixels, [[VISION_START, *tiles[n], GLOBAL, *tile, VISION_END] for n in _counts(counts)]


def _merged(counts: tuple[int, ...]) -> Pixels:
    return pixtral(counts, sizes=[[4, 5], [3, 6]], patch=8)


def _lfm2(counts: tuple[int, ...]) -> Pixels:
    """Two tiles behind their places and a thumbnail of another shape; or one image in its own shape."""
    blocks, shapes = [], []
    for n in _counts(counts):
        if n > 1:
            shapes += [[8, 8], [8, 8], [4, 8]]
            tiles = [i for mark in MARKS for i in (mark, *[IMAGE] * TILE)]
            blocks.append([VISION_START, *tiles, GLOBAL, *[IMAGE] * 8, VISION_END])
        else:
            shapes.append([6, 10])
            blocks.append([VISION_START, *[IMAGE] * 15, VISION_END])
    spatial = torch.tensor(shapes)
    mask = torch.arange(64) < spatial.prod(1)[:, None]
    values = noise(len(shapes), 64, 3 * 4 * 4) * mask[..., None]
    return {"pixel_values": values, "spatial_shapes": spatial, "pixel_attention_mask": mask.long()}, blocks


FAMILIES = [
    Family("internvl", _internvl, _joined),
    Family("internvl-video", _internvl, _frames, apart=True),
    Family("aya_vision", _aya_vision, _aya),
    Family("cohere2_vision", _cohere2_vision, _cohere),
    Family("idefics3", _idefics3, _idefics),
    Family("smolvlm", _smolvlm, _idefics),
    Family("smolvlm-video", _smolvlm, _smolvlm_frames, apart=True),
    Family("llama4", _llama4, _llama),
    Family("mistral3", _mistral3, _merged),
    Family("got_ocr2", _got_ocr2, _joined_large),
    Family("lfm2_vl", _lfm2_vl, _lfm2),
]

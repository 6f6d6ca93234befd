"""Gemma's: bidirectional attention inside images, sliding windows, inputs of their own for each layer."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from .base import (
    IDS,
    IMAGE,
    SHARP,
    SIGLIP,
    TEXT,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCABULARY,
    Family,
    Pixels,
    bordered,
    noise,
    text,
    types,
)

WINDOW = 24
LAYERS = ["sliding_attention", "full_attention"] * 2
SHARED = {
    "num_hidden_layers": 6,
    "layer_types": [*LAYERS[:3], "sliding_attention", "full_attention", "full_attention"],
    "num_kv_shared_layers": 1,
}
NEWLINES = 11


def _paligemma() -> Any:
    config = transformers.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 64},
        text_config=text("gemma", head_dim=16),
        image_token_id=IMAGE,
        projection_dim=64,
        hidden_size=64,
        tie_word_embeddings=False,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def _gemma3(window: int) -> Any:
    decoder = text("gemma3_text", head_dim=16, sliding_window=window, layer_types=LAYERS, query_pre_attn_scalar=16)
    config = transformers.Gemma3Config(
        vision_config={**SIGLIP, "image_size": 40},
        text_config=decoder,
        mm_tokens_per_image=25,
        image_token_index=IMAGE,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
        tie_word_embeddings=False,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _gemma3_sliding() -> Any:
    return _gemma3(WINDOW)


def _gemma3_full() -> Any:
    return _gemma3(2048)


def _gemma4(**changes: Any) -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    decoder = {
        **TEXT,
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": WINDOW,
        "layer_types": LAYERS,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        **changes,
    }
    config = transformers.Gemma4Config(
        vision_config=vision,
        text_config=decoder,
        boi_token_id=VISION_START,
        eoi_token_id=VISION_END,
        audio_token_id=156,
        boa_token_id=157,
        eoa_token_index=158,
        tie_word_embeddings=False,
        **IDS,
    )
    return transformers.Gemma4ForConditionalGeneration(config)


def _gemma4_vision() -> Any:
    """Like the large ones: attention inside an image is bidirectional in sliding layers."""
    return _gemma4(use_bidirectional_attention="vision")


def _gemma4_shared() -> Any:
    """Like the small ones: causal, and the last of six layers reads keys and values of the one before."""
    return _gemma4(**SHARED)


def _gemma3n() -> Any:
    """With ConvNeXt for MobileNet-V5 and a soft cap that caps nothing; layers share keys and values as above.

    Of 160 ids the vision table embeds 150 to 155, the audio table the rest, neither of which has inputs per layer.
    """
    vision = {
        "architecture": "convnext_atto",
        "hidden_size": 256,
        "vocab_offset": 150,
        "vocab_size": 6,
        "model_args": {"depths": (1, 1, 1, 1), "dims": (64, 128, 128, 256)},
    }
    audio = {
        "hidden_size": 32,
        "vocab_offset": 156,
        "vocab_size": 4,
        "input_feat_size": 16,
        "conf_num_attention_heads": 4,
        "conf_num_hidden_layers": 1,
        "sscp_conv_channel_size": (8, 4),
    }
    decoder = {
        **TEXT,
        "head_dim": 16,
        "sliding_window": WINDOW,
        **SHARED,
        "vocab_size_per_layer_input": 150,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "final_logit_softcapping": 1e6,
    }
    config = transformers.Gemma3nConfig(
        vision_config=vision,
        audio_config=audio,
        text_config=decoder,
        vision_soft_tokens_per_image=16,
        image_token_id=IMAGE,
        boi_token_id=VISION_START,
        eoi_token_id=VISION_END,
        audio_token_id=157,
        boa_token_id=158,
        eoa_token_id=159,
        tie_word_embeddings=False,
    )
    return transformers.Gemma3nForConditionalGeneration(config)


def _prefix(counts: tuple[int, ...]) -> Pixels:
    """A sample's last image is followed by the token that other families begin a prompt with."""
    blocks = [[IMAGE] * 36 + [1] * (i == count - 1) for count in counts for i in range(count)]
    return {"pixel_values": noise(len(blocks), 3, 24, 24)}, blocks


def _lines(counts: tuple[int, ...], *, size: int, tokens: int) -> Pixels:
    """Images of one size between blank lines."""
    n = sum(counts)
    return {"pixel_values": noise(n, 3, size, size)}, [[NEWLINES, *block, NEWLINES] for block in bordered([tokens] * n)]


def _gemma3_images(counts: tuple[int, ...]) -> Pixels:
    return _lines(counts, size=40, tokens=25)


def _gemma3n_images(counts: tuple[int, ...]) -> Pixels:
    return _lines(counts, size=128, tokens=16)


def _patches(grids: list[tuple[int, int]], names: tuple[str, str]) -> dict[str, Tensor]:
    """Patches and their (x, y) places, padded to the largest image by places of -1."""
    most = max(height * width for height, width in grids)
    values, places = noise(len(grids), most, 3 * 4 * 4), torch.full((len(grids), most, 2), -1)
    for i, (height, width) in enumerate(grids):
        grid = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
        places[i, : height * width] = torch.stack(grid, dim=-1).flatten(0, 1)
        values[i, height * width :] = 0
    return dict(zip(names, (values, places), strict=True))


def _gemma4_images(counts: tuple[int, ...]) -> Pixels:
    """Two sizes of images, pooled by 2 x 2."""
    grids = [(8, 12 - 4 * (i % 2)) for i in range(sum(counts))]
    pixels = _patches(grids, ("pixel_values", "image_position_ids"))
    return pixels, bordered([height * width // 4 for height, width in grids])


def _gemma4_videos(counts: tuple[int, ...]) -> Pixels:
    """Two or three frames, each behind its time."""
    frames = [3 - i % 2 for i in range(sum(counts))]
    pixels = _patches([(6, 8)] * sum(frames), ("pixel_values_videos", "video_position_ids"))
    blocks = [[i for k in range(n) for i in (20 + k, VISION_START, *[VIDEO] * 12, VISION_END)] for n in frames]
    return {**pixels, "num_frames_per_video": torch.tensor(frames)}, blocks


def _none(ids: Tensor) -> dict[str, Tensor]:
    """0 wherever a prompt is, in which everything sees everything."""
    return {"token_type_ids": torch.zeros_like(ids)}


def _images(ids: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": (ids == IMAGE).long()}


FAMILIES = [
    Family("paligemma", _paligemma, _prefix, extra=_none),
    Family("gemma3", _gemma3_sliding, _gemma3_images, extra=_images),
    Family("gemma3-full", _gemma3_full, _gemma3_images, extra=_images),
    Family("gemma4", _gemma4_vision, _gemma4_images, extra=types, tolerance=SHARP),
    Family(
        "gemma4-video", _gemma4_vision, _gemma4_videos, modality="video", extra=types, tolerance=SHARP, since="5.23"
    ),
    Family("gemma4-shared", _gemma4_shared, _gemma4_images, extra=types, tolerance=SHARP),
    Family("gemma3n", _gemma3n, _gemma3n_images, extra=_images),
]

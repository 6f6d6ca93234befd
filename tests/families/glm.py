"""GLM-V, and VideoLLaMA 3, ERNIE, PaddleOCR-VL, EXAONE and HunYuan-VL: packed towers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from .base import (
    BREAK,
    IDS,
    IMAGE,
    MROPE,
    RECURRENT,
    TEXT,
    VIDEO,
    VISION_END,
    VISION_START,
    Family,
    Pixels,
    bordered,
    noise,
    text,
    types,
)
from .qwen import SPECIAL, TOWER, images, videos

VIDEO_START, VIDEO_END = 156, 157
HALF_MROPE = {**MROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 24}
EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
# Queries, keys and values through low ranks, as in DeepSeek.
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
BLOCKS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 4}


@dataclass(frozen=True)
class VideoAsImages(Family):
    """A family whose processor writes the frames of videos with the placeholder of images."""

    @property
    def token(self) -> int:
        return IMAGE


def in_video(ids: Tensor) -> dict[str, Tensor]:
    """`mm_token_type_ids` of prompts in which every image placeholder is in a video."""
    return {"mm_token_type_ids": 2 * (ids == IMAGE).int()}


def patches(grids: list[list[int]], *shape: int) -> dict[str, Tensor]:
    """Packed patches of a shape, for towers without temporal patches."""
    return {"pixel_values": noise(sum(t * h * w for t, h, w in grids), *shape), "image_grid_thw": torch.tensor(grids)}


def two_sizes(counts: tuple[int, ...]) -> list[list[int]]:
    return [[1, 8 + 4 * (i % 2), 12] for i in range(sum(counts))]


# GLM-V


def frames(counts: tuple[int, ...]) -> Pixels:
    """Videos; in a block for all of them, every temporal step is a block of an image with its time behind it."""
    pixels, _ = videos(counts)
    blocks = []
    for steps, height, width in pixels["video_grid_thw"].tolist():
        frame = [VISION_START, *[IMAGE] * (height * width // 4), VISION_END]
        blocks.append([VIDEO_START, *(token for step in range(steps) for token in (*frame, 20 + step)), VIDEO_END])
    return pixels, blocks


def _glm(config: Any, model: Any, decoder: dict[str, Any], **vision: Any) -> Any:
    tower = {**TOWER, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "image_size": 32, **vision}
    return model(
        config(
            vision_config=tower,
            text_config=decoder,
            image_start_token_id=VISION_START,
            image_end_token_id=VISION_END,
            video_start_token_id=VIDEO_START,
            video_end_token_id=VIDEO_END,
            tie_word_embeddings=False,
            **IDS,
        )
    )


def _glm4v() -> Any:
    decoder = {**TEXT, "rope_parameters": HALF_MROPE}
    return _glm(transformers.Glm4vConfig, transformers.Glm4vForConditionalGeneration, decoder)


def _glm4v_moe() -> Any:
    decoder = {**TEXT, **EXPERTS, "head_dim": 16, "rope_parameters": HALF_MROPE}
    return _glm(transformers.Glm4vMoeConfig, transformers.Glm4vMoeForConditionalGeneration, decoder)


def _glm46v() -> Any:
    decoder = {**TEXT, "rope_parameters": HALF_MROPE}
    return _glm(transformers.Glm46VConfig, transformers.Glm46VForConditionalGeneration, decoder)


def _glm_ocr() -> Any:
    decoder = {**TEXT, "head_dim": 16, "rope_parameters": MROPE}
    return _glm(transformers.GlmOcrConfig, transformers.GlmOcrForConditionalGeneration, decoder)


def _glm5_next() -> Any:
    """Linear and indexed attention, without positions; the index takes all tokens, see `kimi._dots3_note`."""
    decoder = {
        **TEXT,
        **EXPERTS,
        **LATENT,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "index_topk": 512,
        "index_kpool": 4,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "hc_mult": 2,
    }
    model = transformers.Glm5NextForConditionalGeneration
    return _glm(transformers.Glm5NextConfig, model, decoder, projection_intermediate_size=48)


# VideoLLaMA 3


def _video_llama_3() -> Any:
    config = transformers.VideoLlama3Config(vision_config=BLOCKS, text_config=text("qwen2"), **IDS)
    return transformers.VideoLlama3ForConditionalGeneration(config)


def _merged(counts: tuple[int, ...]) -> Pixels:
    grids = two_sizes(counts)
    sizes = {"image_merge_sizes": torch.full((len(grids),), 2)}
    return {**patches(grids, 48), **sizes}, [[IMAGE] * (h * w // 4) for _, h, w in grids]


def _compressed(counts: tuple[int, ...]) -> Pixels:
    """Three frames, of which the later ones lack the tokens that look like those before: no placeholders for them."""
    grids = [[3, 8, 4 + 4 * (i % 2)] for i in range(sum(counts))]
    kept, blocks = [], []
    for frames_, height, width in grids:
        keep = noise(frames_, height * width // 4, seed=5) > -0.5
        keep[0] = True
        kept.append(keep.flatten())
        stamped = [[10, 20 + i, 30, *[VIDEO] * n] for i, n in enumerate(keep.sum(1).tolist())]
        blocks.append([*stamped[0], 31, *stamped[1], 31, *stamped[2]])
    pixels = {
        "pixel_values_videos": noise(sum(t * h * w for t, h, w in grids), 48),
        "video_grid_thw": torch.tensor(grids),
        "video_merge_sizes": torch.full((len(grids),), 2),
        "video_compression_mask": torch.cat(kept),
    }
    return pixels, blocks


# ERNIE 4.5


def _ernie4_5_vl_moe() -> Any:
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
    decoder = {
        **TEXT,
        "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]},
        "moe_intermediate_size": [32, 24],
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    }
    config = transformers.Ernie4_5_VLMoeConfig(
        vision_config=vision,
        text_config=decoder,
        image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
        video_start_token_id=VIDEO_START,
        video_end_token_id=VIDEO_END,
        tie_word_embeddings=False,
        **IDS,
    )
    return transformers.Ernie4_5_VLMoeForConditionalGeneration(config)


def _ernie_images(counts: tuple[int, ...]) -> Pixels:
    grids = two_sizes(counts)
    return patches(grids, 48), bordered([h * w // 4 for _, h, w in grids])


def _ernie_videos(counts: tuple[int, ...]) -> Pixels:
    """Four frames, merged to two."""
    grids = [[4, 8, 4 + 4 * (i % 2)] for i in range(sum(counts))]
    values = patches(grids, 48)
    pixels = {"pixel_values_videos": values["pixel_values"], "video_grid_thw": values["image_grid_thw"]}
    return pixels, [[VIDEO_START, *[VIDEO] * (t * h * w // 8), VIDEO_END] for t, h, w in grids]


def _ernie_types(ids: Tensor) -> dict[str, Tensor]:
    """Routing to the experts of vision takes in the borders."""
    image, video = torch.tensor([IMAGE, VISION_START, VISION_END]), torch.tensor([VIDEO, VIDEO_START, VIDEO_END])
    return {**types(ids), "moe_mm_token_type_ids": torch.isin(ids, image).int() + 2 * torch.isin(ids, video).int()}


# PaddleOCR-VL, EXAONE 4.5, HunYuan-VL


def _paddleocr_vl() -> Any:
    decoder = {**TEXT, "head_dim": 16, "rope_parameters": MROPE}
    config = transformers.PaddleOCRVLConfig(vision_config={**BLOCKS, "image_size": 24}, text_config=decoder, **SPECIAL)
    return transformers.PaddleOCRVLForConditionalGeneration(config)


def square_patches(counts: tuple[int, ...]) -> Pixels:
    grids = two_sizes(counts)
    return patches(grids, 3, 4, 4), bordered([h * w // 4 for _, h, w in grids])


def _exaone4_5() -> Any:
    vision = {
        **TOWER,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "window_size": 16,
        "fullatt_block_indexes": [2],
    }
    config = transformers.Exaone4_5_Config(vision_config=vision, text_config=text("exaone4", **SLIDING), **IDS)
    return transformers.Exaone4_5_ForConditionalGeneration(config)


def _hunyuan_vl() -> Any:
    """Four rows of positions: in the prompt, across, down, and the number of the image."""
    vision = {**BLOCKS, "out_hidden_size": 64, "max_image_size": 32}
    decoder = {**TEXT, "head_dim": 16, "rope_parameters": {**MROPE, "mrope_section": [2, 2, 2, 2]}}
    config = transformers.HunYuanVLConfig(
        vision_config=vision,
        text_config=decoder,
        image_token_id=IMAGE,
        im_start_id=VISION_START,
        im_end_id=VISION_END,
        im_newline_id=BREAK,
        tie_word_embeddings=False,
    )
    return transformers.HunYuanVLForConditionalGeneration(config)


def _newlines(counts: tuple[int, ...]) -> Pixels:
    """Placeholders also for a begin, an end, and a newline behind every row, which the model makes."""
    grids = two_sizes(counts)
    return patches(grids, 48), bordered([h // 2 * (w // 2 + 1) + 2 for _, h, w in grids])


def _no_patches(image: int) -> list[int]:
    """Begin, end, and a newline after every line of six."""
    lines = 4 + 2 * (image % 2)
    return [0, *(7 * line for line in range(1, lines + 1)), 7 * lines + 1]


FAMILIES = [
    Family("glm4v", _glm4v, images, extra=types),
    VideoAsImages("glm4v-video", _glm4v, frames, modality="video", extra=in_video),
    Family("glm4v_moe", _glm4v_moe, images, extra=types),
    VideoAsImages("glm4v_moe-video", _glm4v_moe, frames, modality="video", extra=in_video),
    Family("glm46v", _glm46v, images, extra=types),
    VideoAsImages("glm46v-video", _glm46v, frames, modality="video", extra=in_video),
    Family("glm_ocr", _glm_ocr, images, extra=types),
    VideoAsImages("glm_ocr-video", _glm_ocr, frames, modality="video", extra=in_video),
    Family("glm5_next", _glm5_next, images, extra=types, tolerance=RECURRENT, since="5.23"),
    VideoAsImages(
        "glm5_next-video", _glm5_next, frames, modality="video", extra=in_video, tolerance=RECURRENT, since="5.23"
    ),
    Family("video_llama_3", _video_llama_3, _merged),
    Family("video_llama_3-video", _video_llama_3, _compressed, modality="video"),
    Family("ernie4_5_vl_moe", _ernie4_5_vl_moe, _ernie_images, extra=_ernie_types),
    Family("ernie4_5_vl_moe-video", _ernie4_5_vl_moe, _ernie_videos, modality="video", extra=_ernie_types),
    Family("paddleocr_vl", _paddleocr_vl, square_patches, extra=types),
    Family("exaone4_5", _exaone4_5, images),
    Family("exaone4_5-video", _exaone4_5, videos, modality="video"),
    Family("hunyuan_vl", _hunyuan_vl, _newlines, extra=types, protected=_no_patches),
]

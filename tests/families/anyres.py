"""Relatives of LLaVA: several feature layers, crops of any resolution, videos."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .base import BREAK, CLIP, IDS, IMAGE, SIGLIP, VIDEO, VISION_END, Family, Pixels, noise, text
from .llava import flat

SMALL = {"image_size": 16}
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
    "image_size": 32,
    "patch_size": 4,
}
# Crops of 4 x 4 tokens. The first size is cut into 2 x 2 of them, of which 4 of 8 rows are no padding; the second into
# 2 x 1, of which 2 of 4 columns are none. Every row ends in a newline feature, and the whole image comes first.
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
SIZES, CROPS, LENGTHS = [[17, 32], [32, 10]], [5, 3], [16 + 4 * (8 + 1), 16 + 8 * (2 + 1)]


def _vipllava() -> Any:
    layers = [-1, -2, -3]  # under the present name and the one before
    config = transformers.VipLlavaConfig(
        vision_config=CLIP,
        text_config=text("llama"),
        image_token_id=IMAGE,
        vision_feature_layer=layers,
        vision_feature_layers=layers,
    )
    return transformers.VipLlavaForConditionalGeneration(config)


def _llava_pixtral() -> Any:
    config = transformers.LlavaConfig(
        vision_config=PIXTRAL,
        text_config=text("mistral", sliding_window=None),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return transformers.LlavaForConditionalGeneration(config)


def _llava_next() -> Any:
    config = transformers.LlavaNextConfig(
        vision_config={**CLIP, **SMALL}, text_config=text("llama"), image_token_id=IMAGE, image_grid_pinpoints=PINPOINTS
    )
    return transformers.LlavaNextForConditionalGeneration(config)


def _llava_next_video() -> Any:
    config = transformers.LlavaNextVideoConfig(
        vision_config={**CLIP, **SMALL}, text_config=text("llama"), image_grid_pinpoints=PINPOINTS, **IDS
    )
    return transformers.LlavaNextVideoForConditionalGeneration(config)


def _llava_onevision() -> Any:
    config = transformers.LlavaOnevisionConfig(
        vision_config={**SIGLIP, **SMALL}, text_config=text("qwen2"), image_grid_pinpoints=PINPOINTS, **IDS
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config)


def _video_llava() -> Any:
    config = transformers.VideoLlavaConfig(vision_config={**CLIP, **SMALL}, text_config=text("llama"), **IDS)
    return transformers.VideoLlavaForConditionalGeneration(config)


def _granite4_vision() -> Any:
    """Features enter before the layers 0 to 3 of 6; the tower is 64 wide because the Q-Former's heads are."""
    config = transformers.Granite4VisionConfig(
        vision_config={**SIGLIP, "hidden_size": 64, "image_size": 32},
        text_config=text("granite4_vision_text", num_hidden_layers=6, attention_multiplier=0.25),
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48},
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[(-1, 0), (-2, 1)],
        spatial_vision_layer=-1,
        spatial_target_layers=[2, 3],
        image_grid_pinpoints=[[2 * height, 2 * width] for height, width in PINPOINTS],
    )
    return transformers.Granite4VisionForConditionalGeneration(config)


def _fast_vlm() -> Any:
    """With ConvNeXt for FastViT, through which nothing comes of an image under weights drawn at random."""
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "convnext_atto",
        "do_pooling": False,
        "hidden_size": 256,
        "model_args": {"depths": (1, 1, 1, 1), "dims": (64, 128, 128, 256)},
    }
    config = transformers.FastVlmConfig(vision_config=vision, text_config=text("qwen2"), image_token_id=IMAGE)
    return transformers.FastVlmForConditionalGeneration(config)


def _perception_lm() -> Any:
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_tiny_patch16_384",
        "model_args": {
            "embed_dim": 32,
            "img_size": (32, 32),
            "ref_feat_shape": (8, 8),
            "patch_size": 4,
            "depth": 3,
            "num_heads": 4,
            "global_pool": "",
            "use_post_transformer_norm": False,
            "init_values": 0.1,
        },
    }
    config = transformers.PerceptionLMConfig(
        vision_config=vision, text_config=text("llama"), projector_pooling_ratio=2, tie_word_embeddings=False, **IDS
    )
    return transformers.PerceptionLMForConditionalGeneration(config)


def rows(height: int, width: int) -> list[int]:
    """A Pixtral image: a break behind each row of placeholders but the last, an end behind that one."""
    return ([IMAGE] * width + [BREAK]) * (height - 1) + [IMAGE] * width + [VISION_END]


def pixtral(counts: tuple[int, ...], *, sizes: list[list[int]], patch: int) -> Pixels:
    """Images of several sizes (in tokens of patch x patch pixels), padded to the largest."""
    grids = torch.tensor([sizes[i % len(sizes)] for i in range(sum(counts))])
    lengths = grids * patch
    values = noise(len(grids), 3, *lengths.amax(0).tolist())
    for value, (height, width) in zip(values, lengths.tolist(), strict=True):
        value[:, height:], value[:, :, width:] = 0, 0
    pixels = {"pixel_values": values, "image_sizes": lengths}
    return pixels, [rows(height, width) for height, width in grids.tolist()]


def _pixtral(counts: tuple[int, ...]) -> Pixels:
    return pixtral(counts, sizes=[[6, 5], [4, 6]], patch=4)


def _crops(cut: list[bool], *, scale: int = 1, whole: int = 16) -> Pixels:
    """Images of two sizes, cut into crops or not; `scale` times as large as `SIZES`, `whole` tokens if not cut."""
    kinds = [i % 2 for i in range(len(cut))]
    crops = [CROPS[kind] if yes else 1 for kind, yes in zip(kinds, cut, strict=True)]
    values = noise(len(cut), max(crops), 3, 16 * scale, 16 * scale)
    for value, n in zip(values, crops, strict=True):
        value[n:] = 0
    pixels = {"pixel_values": values, "image_sizes": scale * torch.tensor([SIZES[kind] for kind in kinds])}
    return pixels, [[IMAGE] * (LENGTHS[kind] if yes else whole) for kind, yes in zip(kinds, cut, strict=True)]


def _anyres(counts: tuple[int, ...]) -> Pixels:
    return _crops([True] * sum(counts))


def _anyres_granite(counts: tuple[int, ...]) -> Pixels:
    return _crops([True] * sum(counts), scale=2)


def _anyres_onevision(counts: tuple[int, ...]) -> Pixels:
    """Only a sample's single image is cut; others are one crop and a newline feature."""
    pixels, blocks = _crops([count == 1 for count in counts for _ in range(count)], whole=16 + 1)
    return {**pixels, "batch_num_images": torch.tensor(counts)}, blocks


def _video(counts: tuple[int, ...], *, frames: int, size: int = 16, tokens: int) -> Pixels:
    """Videos of one length in one block each."""
    n = sum(counts)
    return {"pixel_values_videos": noise(n, frames, 3, size, size)}, [[VIDEO] * tokens] * n


def _video_pooled(counts: tuple[int, ...]) -> Pixels:
    return _video(counts, frames=6, tokens=6 * 4)


def _video_onevision(counts: tuple[int, ...]) -> Pixels:
    """2 x 2 pooled patches a frame and one newline feature behind them all."""
    return _video(counts, frames=6, tokens=6 * 4 + 1)


def _video_classes(counts: tuple[int, ...]) -> Pixels:
    """Each frame starts with the tower's class token."""
    return _video(counts, frames=3, tokens=3 * (1 + 16))


def _video_tiles(counts: tuple[int, ...]) -> Pixels:
    return _video(counts, frames=3, size=32, tokens=3 * 16)


def _small(counts: tuple[int, ...]) -> Pixels:
    return flat(counts, size=16, tokens=16)


def _large(counts: tuple[int, ...]) -> Pixels:
    return flat(counts, size=128, tokens=16)


def _tiles(counts: tuple[int, ...]) -> Pixels:
    """A thumbnail and two tiles an image; a batch has one number of tiles."""
    n = sum(counts)
    return {"pixel_values": noise(n, 3, 3, 32, 32)}, [[IMAGE] * 3 * 16] * n


FAMILIES = [
    Family("vipllava", _vipllava, flat),
    Family("llava-pixtral", _llava_pixtral, _pixtral),
    Family("llava_next", _llava_next, _anyres),
    Family("llava_next_video", _llava_next_video, _anyres),
    Family("llava_next_video-video", _llava_next_video, _video_pooled, modality="video"),
    Family("llava_onevision", _llava_onevision, _anyres_onevision),
    Family("llava_onevision-video", _llava_onevision, _video_onevision, modality="video"),
    Family("video_llava", _video_llava, _small, since="5.23"),
    Family(
        "video_llava-video",
        _video_llava,
        _video_classes,
        modality="video",
        protected=lambda video: [0, 17, 34, 51],  # class tokens of four frames
    ),
    Family("granite4_vision", _granite4_vision, _anyres_granite, since="5.23"),
    Family("fast_vlm", _fast_vlm, _large),
    Family("perception_lm", _perception_lm, _tiles),
    Family("perception_lm-video", _perception_lm, _video_tiles, modality="video"),
]

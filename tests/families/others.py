"""Families with few or no relatives: Aria, Janus, DeepSeek-VL, Mistral Large 4, Molmo 2, Inkling, Gemma 4 unified."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers

from .base import (
    BREAK,
    CLIP,
    GLOBAL,
    IDS,
    IMAGE,
    SHARP,
    SIGLIP,
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

VIT = {name: value for name, value in CLIP.items() if name not in ("model_type", "projection_dim")}
COLUMN, FRAME_START, FRAME_END, AUDIO = 156, 157, 158, 159
UNCAPPED = 1e4  # for families that always squash their logits: far above any of them


def _aria() -> Any:
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = transformers.AriaConfig(
        vision_config={**VIT, "model_type": "idefics3_vision"},
        text_config=text("aria_text", **experts),
        projector_patch_to_query_dict={36: 16},
        image_token_index=IMAGE,
    )
    return transformers.AriaForConditionalGeneration(config)


def _crops(counts: tuple[int, ...]) -> Pixels:
    """Two crops for every image, padded, in one run of placeholders."""
    n = sum(counts)
    mask = torch.zeros(2 * n, 24, 24, dtype=torch.bool)
    for i in range(n):
        mask[2 * i : 2 * i + 2, : 24 - 8 * (i % 2)] = True
    return {"pixel_values": noise(2 * n, 3, 24, 24) * mask[:, None], "pixel_mask": mask}, [[IMAGE] * 32] * n


def _janus() -> Any:
    generator = {
        "embed_dim": 8,
        "num_embeddings": 16,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "projection_dim": 64,
        "image_token_embed_dim": 64,
    }
    vision = {**VIT, "mlp_ratio": 2.0, "projection_dim": 64, "num_image_tokens": 36}
    config = transformers.JanusConfig(
        vision_config=vision,
        vq_config=generator,
        text_config=text("llama"),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return transformers.JanusForConditionalGeneration(config)


def _deepseek_vl() -> Any:
    config = transformers.DeepseekVLConfig(
        vision_config=SIGLIP, text_config=text("llama"), image_token_id=IMAGE, tie_word_embeddings=False
    )
    return transformers.DeepseekVLForConditionalGeneration(config)


def _deepseek_vl_hybrid() -> Any:
    fine = {
        "model_type": "sam_vision_model",
        "hidden_size": 32,
        "output_channels": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 48,
    }
    config = transformers.DeepseekVLHybridConfig(
        vision_config=SIGLIP,
        high_res_vision_config=fine,
        text_config=text("llama"),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return transformers.DeepseekVLHybridForConditionalGeneration(config)


def _whole(counts: tuple[int, ...], *, borders: bool = False, fine: int | None = None) -> Pixels:
    """Images of one size, 36 tokens each, and perhaps again in a finer resolution."""
    n = sum(counts)
    pixels = {"pixel_values": noise(n, 3, 24, 24)}
    if fine:
        pixels["high_res_pixel_values"] = noise(n, 3, fine, fine)
    return pixels, bordered([36] * n) if borders else [[IMAGE] * 36] * n


def _mistral_large4(*, keys: int) -> Any:
    attention = {
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "index_topk": keys,
        "index_head_dim": 16,
        "index_n_heads": 2,
    }
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = transformers.MistralLarge4Config(
        vision_config={**VIT, "model_type": "pixtral", "head_dim": 8},
        text_config=text("mistral_large4_text", **attention, **experts, final_logit_softcapping=UNCAPPED),
        image_token_index=IMAGE,
    )
    return transformers.MistralLarge4ForConditionalGeneration(config)


def _rows(counts: tuple[int, ...]) -> Pixels:
    """Two sizes, padded to one, with a break behind every row but the last."""
    sizes = [(32, 40 - 16 * (i % 2)) for i in range(sum(counts))]
    pixels = noise(len(sizes), 3, 32, 40)
    for image, (_, width) in zip(pixels, sizes, strict=True):
        image[:, :, width:] = 0
    rows = [[*[IMAGE] * (w // 8), BREAK] * (h // 8) for h, w in sizes]
    blocks = [[*row[:-1], VISION_END] for row in rows]
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}, blocks


def _molmo2(token: int) -> Any:
    """Both images and videos lie under the patch token; `token` is what it shall be."""
    vision = {**VIT, "num_key_value_heads": 4, "head_dim": 8, "image_size": [24, 24]}
    adapter = {
        "vision_feature_layer": [-1, -2],
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "intermediate_size": 48,
        "text_hidden_size": 64,
    }
    config = transformers.Molmo2Config(
        vision_config=vision,
        adapter_config=adapter,
        text_config=text("molmo2_text", head_dim=16, additional_vocab_size=8),
        image_patch_id=token,
        image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
        low_res_image_start_token_id=GLOBAL,
        frame_start_token_id=FRAME_START,
        frame_end_token_id=FRAME_END,
    )
    return transformers.Molmo2ForConditionalGeneration(config)


def _pools(first: int, crops: int) -> torch.Tensor:
    """[tokens, 4]: the 2 x 2 patches of every token of `crops` crops of 6 x 6 patches side by side, row by row."""
    patches = first + torch.arange(36 * crops).view(crops, 6, 6).transpose(0, 1).reshape(6, 6 * crops)
    return patches.view(3, 2, 3 * crops, 2).transpose(1, 2).reshape(-1, 4)


def _molmo2_images(counts: tuple[int, ...]) -> Pixels:
    """A small view and then the image in two or one crops; a column token ends every row of both."""
    pools, grids, blocks, crops = [], [], [], 0
    for i in range(sum(counts)):
        wide = 2 - i % 2
        pools += [_pools(36 * crops, 1), _pools(36 * (crops + 1), wide)]
        grids.append([3, 3, 3, 3 * wide])
        small, large = [*[IMAGE] * 3, COLUMN] * 3, [*[IMAGE] * 3 * wide, COLUMN] * 3
        blocks.append([GLOBAL, *small, VISION_END, VISION_START, *large, VISION_END])
        crops += 1 + wide
    pixels = {
        "pixel_values": noise(crops, 36, 48),
        "image_token_pooling": torch.cat(pools),
        "image_grids": torch.tensor(grids),
        "image_num_crops": torch.tensor([1 + grid[3] // 3 for grid in grids]),
    }
    return pixels, blocks


def _molmo2_videos(counts: tuple[int, ...]) -> Pixels:
    n = sum(counts)
    frames = [token for i in range(3) for token in (20, 30 + i, FRAME_START, *[VIDEO] * 9, FRAME_END)]
    pixels = {
        "pixel_values_videos": noise(3 * n, 36, 48),
        "video_token_pooling": torch.cat([_pools(36 * i, 1) for i in range(3 * n)]),
        "video_grids": torch.tensor([[3, 3, 3]] * n),
    }
    return pixels, [frames] * n


def _molmo2_types(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Borders and column tokens count as image."""
    visual = torch.tensor([IMAGE, VIDEO, VISION_START, VISION_END, GLOBAL, COLUMN, FRAME_START, FRAME_END])
    return {"mm_token_type_ids": torch.isin(ids, visual).int()}


INKLING = {
    "head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": 64,
    "d_rel": 4,
    "rel_extent": 64,
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "route_scale": 1.0,
}


def _inkling() -> Any:
    layers = {"mlp_layer_types": ["dense", "sparse"] * 2, "n_shared_experts": 1, "logits_mup_width_multiplier": 1.0}
    config = transformers.InklingConfig(
        vision_config={"patch_size": 4, "hidden_size": 32, "n_layers": 4},
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 8},
        text_config=text("inkling_text", **INKLING, **layers),
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        image_bos_token_id=VISION_START,
    )
    return transformers.InklingForConditionalGeneration(config)


def _inkling_images(counts: tuple[int, ...]) -> Pixels:
    """A patch is a token; nothing but the prompt tells the images apart."""
    lengths = [24 - 8 * (i % 2) for i in range(sum(counts))]
    return {"pixel_values": noise(sum(lengths), 2, 4, 4, 3)}, [[VISION_START, *[IMAGE] * n] for n in lengths]


def _inkling2() -> Any:
    vision = {**VIT, "posemb_grid_size": 8, "projection_hidden_dim": 64, "text_hidden_size": 64}
    parts = {key: value for key, value in text("inkling2_text").items() if key != "intermediate_size"}
    softcaps = {"unpadded_vocab_size": VOCABULARY, "final_logit_softcapping": UNCAPPED}
    config = transformers.Inkling2Config(
        vision_config={name: value for name, value in vision.items() if name != "image_size"},
        text_config={**parts, **INKLING, **softcaps, "n_layers_per_attn_res_block": 2},
        image_token_id=IMAGE,
    )
    return transformers.Inkling2ForConditionalGeneration(config)


def _inkling2_images(counts: tuple[int, ...]) -> Pixels:
    grids = [[1, 4, 6 - 2 * (i % 2)] for i in range(sum(counts))]
    lengths = [h * w for _, h, w in grids]
    pixels = {"pixel_values": noise(sum(lengths), 8, 8, 3), "image_grid_thw": torch.tensor(grids)}
    return pixels, [[IMAGE] * n for n in lengths]


def _gemma4_unified() -> Any:
    vision = {
        "patch_size": 2,
        "pooling_kernel_size": 2,
        "mm_embed_dim": 32,
        "mm_posemb_size": 64,
        "output_proj_dims": 32,
    }
    layers = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 64}
    config = transformers.Gemma4UnifiedConfig(
        vision_config=vision,
        text_config=text("gemma4_unified_text", head_dim=16, global_head_dim=16, **layers),
        boi_token_id=VISION_START,
        eoi_token_id=VISION_END,
        audio_token_id=AUDIO,
        tie_word_embeddings=False,
        **IDS,
    )
    return transformers.Gemma4UnifiedForConditionalGeneration(config)


def _places(sizes: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches and their (column, row), padded to the largest image with -1."""
    places = torch.full((len(sizes), max(h * w for h, w in sizes), 2), -1)
    for place, (h, w) in zip(places, sizes, strict=True):
        place[: h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(-1)
    return noise(*places.shape[:2], 48).sigmoid(), places


def _gemma4_images(counts: tuple[int, ...]) -> Pixels:
    sizes = [(4, 6 - 2 * (i % 2)) for i in range(sum(counts))]
    pixels, places = _places(sizes)
    return {"pixel_values": pixels, "image_position_ids": places}, bordered([h * w for h, w in sizes])


def _gemma4_videos(counts: tuple[int, ...]) -> Pixels:
    """Three frames with their time before each."""
    sizes = [(2, 4 - i % 2) for i in range(sum(counts))]
    pixels, places = _places([size for size in sizes for _ in range(3)])
    names = {"pixel_values_videos": pixels, "video_position_ids": places}
    frames = [[VISION_START, *[VIDEO] * h * w, VISION_END] for h, w in sizes]
    blocks = [[token for i in range(3) for token in (30 + i, *frame)] for frame in frames]
    return {**names, "num_frames_per_video": torch.tensor([3] * len(sizes))}, blocks


FAMILIES = [
    Family("aria", _aria, _crops),
    Family("janus", _janus, partial(_whole, borders=True)),
    Family("deepseek_vl", _deepseek_vl, _whole),
    Family("deepseek_vl_hybrid", _deepseek_vl_hybrid, partial(_whole, fine=32)),
    Family("mistral_large4", partial(_mistral_large4, keys=2048), _rows),
    Family("molmo2", partial(_molmo2, IMAGE), _molmo2_images, extra=_molmo2_types),
    Family("molmo2-video", partial(_molmo2, VIDEO), _molmo2_videos, modality="video", extra=_molmo2_types),
    Family("inkling_mm_model", _inkling, _inkling_images),
    Family("inkling2", _inkling2, _inkling2_images, attentions=("eager",)),  # sinks and position biases
    Family("gemma4_unified", _gemma4_unified, _gemma4_images, extra=types, tolerance=SHARP),
    Family(
        "gemma4_unified-video",
        _gemma4_unified,
        _gemma4_videos,
        modality="video",
        extra=types,
        tolerance=SHARP,
        since="5.23",
    ),
]

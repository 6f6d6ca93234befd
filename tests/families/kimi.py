"""Kimi K2.5, MiniMax M3, dots 3 and Step 3.7: mixtures of experts with attention of their own."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .base import BREAK, IDS, IMAGE, TEXT, VIDEO, VISION_END, VISION_START, Family, Pixels, bordered, noise, text
from .glm import BLOCKS, EXPERTS, LATENT, SLIDING, patches, square_patches, two_sizes
from .qwen import images
from .qwen_relatives import stamped

TILE_START, TILE_END, AUDIO, CONTENT = 156, 157, 158, 159


def _kimi_k25() -> Any:
    vision = {**BLOCKS, "pos_emb_height": 8, "pos_emb_width": 8}
    decoder = text("deepseek_v3", **EXPERTS, **LATENT, qk_rope_head_dim=8, first_k_dense_replace=1)
    config = transformers.Kimi_K25Config(
        vision_config=vision,
        text_config=decoder,
        projection_hidden_size=32,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
        **IDS,
    )
    return transformers.Kimi_K25ForConditionalGeneration(config)


def _media(counts: tuple[int, ...]) -> Pixels:
    """Between the start token and the placeholders: the word "image" and one more token."""
    grids = two_sizes(counts)
    return patches(grids, 3, 4, 4), [
        [VISION_START, 25, CONTENT, *[IMAGE] * (h * w // 4), VISION_END] for _, h, w in grids
    ]


def _minimax_m3_vl(*, layer: str = "full_attention") -> Any:
    decoder = {
        **TEXT,
        "head_dim": 16,
        "rotary_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "intermediate_size": 32,
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "layer_types": ["full_attention", layer] * 2,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_block_size": 8,
        "index_topk_blocks": 3,
        "index_local_blocks": 1,
    }
    config = transformers.MiniMaxM3VLConfig(
        vision_config=BLOCKS,
        text_config=decoder,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        projector_hidden_size=64,
    )
    return transformers.MiniMaxM3SparseForConditionalGeneration(config)


def _minimax_m3_sparse() -> Any:
    """Every other layer attends to the nearest block of eight and two chosen ones.

    It takes positions for places in the cache: dense too, left padding and gaps in the positions change its result.
    """
    return _minimax_m3_vl(layer="minimax_m3_sparse")


def _dots3_note() -> Any:
    """Layers that attend to chosen tokens and layers with a window.

    The choice takes all tokens here: with fewer it jumps on float noise, and dense generate and forward already differ.
    """
    decoder = {
        **TEXT,
        **EXPERTS,
        **LATENT,
        "qk_rope_head_dim": 8,
        "head_dim": 32,
        "shared_experts_intermediate_size": 32,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "sliding_window": 24,
        "index_topk": 512,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 32,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 32,
        "swa_qk_nope_head_dim": 24,
        "swa_v_head_dim": 16,
    }
    vision = {
        **BLOCKS,
        "moe_intermediate_size": 32,
        "mlp_layer_types": ["dense", "sparse", "dense"],
        "num_local_experts": 4,
        "adapter_in_dim": 32,
        "adapter_out_dim": 64,
    }
    audio = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "feature_size": 16,
        "downsample_hidden_size": 16,
        "adapter_input_size": 32,
        "adapter_out_dim": 64,
    }
    config = transformers.Dots3NoteConfig(
        vision_config=vision, text_config=decoder, audio_config=audio, audio_token_id=AUDIO, **IDS
    )
    return transformers.Dots3NoteForConditionalGeneration(config)


def _square_videos(counts: tuple[int, ...]) -> Pixels:
    """Three temporal steps, in one block."""
    grids = [[3, 8, 4 + 4 * (i % 2)] for i in range(sum(counts))]
    pixels = {
        "pixel_values_videos": noise(sum(t * h * w for t, h, w in grids), 3, 4, 4),
        "video_grid_thw": torch.tensor(grids),
    }
    return pixels, bordered([t * h * w // 4 for t, h, w in grids], VIDEO)


def _step3p7() -> Any:
    """Layers with a window have more heads than the others."""
    decoder = {
        **TEXT,
        **SLIDING,
        "head_dim": 16,
        "num_sliding_attention_heads": 8,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "n_routed_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 32,
    }
    vision = {**BLOCKS, "mlp_ratio": 1.5, "image_size": 64, "max_position_embeddings": 256}
    config = transformers.Step3p7Config(vision_config=vision, text_config=decoder, image_token_id=IMAGE)
    return transformers.Step3p7ForConditionalGeneration(config)


def _tiles(counts: tuple[int, ...]) -> Pixels:
    """Even images have two tiles of 9 tokens, one below the other; the whole image of 16 tokens comes last."""
    tiles = [2 * (1 - i % 2) for i in range(sum(counts))]
    tile, whole = [TILE_START, *[IMAGE] * 9, TILE_END], [VISION_START, *[IMAGE] * 16, VISION_END]
    pixels = {
        "pixel_values": noise(len(tiles), 3, 64, 64),
        "pixel_values_local": noise(sum(tiles), 3, 48, 48),
        "num_local_patches": torch.tensor(tiles),
    }
    return pixels, [[*tile, BREAK, *tile, *whole] if n else whole for n in tiles]


FAMILIES = [
    Family("kimi_k25", _kimi_k25, _media),
    Family("minimax_m3_vl", _minimax_m3_vl, images),
    Family("minimax_m3_vl-video", _minimax_m3_vl, stamped, modality="video"),
    Family("minimax_m3_vl-sparse", _minimax_m3_sparse, images),
    Family("dots3_note", _dots3_note, square_patches),
    Family("dots3_note-video", _dots3_note, _square_videos, modality="video"),
    Family("step3p7", _step3p7, _tiles),
]

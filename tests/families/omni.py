"""Packed towers of families that also read audio or drive robots: Muse, Nemotron, Cosmos 3."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers

from .base import (
    BREAK,
    IDS,
    MROPE,
    SHARP,
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

AUDIO = 159
BORDERS = {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}


def _muse(prefix: str, decoder: str, **parts: Any) -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "patch_size": 4,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
    }
    changes = {"head_dim": 16, "sliding_window": 64, "output_multiplier": 1.0, "final_logit_softcapping": 1e4}
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision,
        text_config=text(decoder, **changes, **parts.pop("text", {})),
        out_hidden_size=128,
        projector_hidden_size=64,
        **IDS,
        **parts,
    )
    return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)


def _muse_spark() -> Any:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_hidden_size": 32}
    audio = {
        "patch_sizes": [2, 2],
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "out_hidden_size": 64,
    }
    return _muse("MuseSpark", "muse_spark_text", text=experts, audio_config=audio, audio_token_id=AUDIO)


def _grids(counts: tuple[int, ...], *, width: int) -> Pixels:
    """Packed patches of `width` numbers, four of them to a token."""
    grids = [[1, 8 + 4 * (i % 2), 8] for i in range(sum(counts))]
    pixels = noise(sum(h * w for _, h, w in grids), width)
    names = {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}
    return names, bordered([h * w // 4 for _, h, w in grids])


def _clips(counts: tuple[int, ...], *, width: int, separated: bool) -> Pixels:
    """Three frames with their time before each: either with borders or, in one block, with separators."""
    grids = [[3, 8, 4 + 4 * (i % 2)] for i in range(sum(counts))]
    blocks = []
    for t, h, w in grids:
        block = []
        for i in range(t):
            frame, stamp = [VIDEO] * (h * w // 4), [20, 30 + i]
            block += [*stamp, *frame, BREAK] if separated else [*stamp, VISION_START, *frame, VISION_END]
        blocks.append([VISION_START, *block[:-1], VISION_END] if separated else block)
    pixels = noise(sum(t * h * w for t, h, w in grids), width)
    return {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor(grids)}, blocks


def _nemotron() -> Any:
    """Images only: its videos stop at `torch.cat` of a tensor in transformers 5.23."""
    vision = {
        "model_type": "radio",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "mlp_ratio": 2.0,
        "patch_size": 4,
        "image_size": 32,
        "max_img_size": 64,
        "num_cls_tokens": 2,
        "num_registers": 2,
        "video_temporal_patch_size": 2,
    }
    mamba = {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 16}
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32}
    layers = ["linear_attention", "full_attention", "moe", "full_attention"]
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        vision_config=vision,
        text_config=text("nemotron_h", head_dim=16, layers_block_type=layers, **mamba, **experts),
        vision_hidden_size=32,
        projector_hidden_size=64,
        audio_token_id=AUDIO,
        **IDS,
    )
    return transformers.NemotronH_Omni_Reasoning_V3(config)


def _nemotron_images(counts: tuple[int, ...]) -> Pixels:
    grids = [[8, 8 + 4 * (i % 2)] for i in range(sum(counts))]
    pixels = {"pixel_values": noise(sum(h * w for h, w in grids), 48), "image_grid_hw": torch.tensor(grids)}
    return pixels, bordered([h * w // 4 for h, w in grids])


def _cosmos3_edge() -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "patch_size": 4,
        "num_patches": 64,
    }
    config = transformers.Cosmos3EdgeConfig(
        vision_config=vision,
        text_config=text("cosmos3_edge_text", head_dim=16, rope_parameters=MROPE),
        projector_hidden_size=64,
        **IDS,
        **BORDERS,
    )
    return transformers.Cosmos3EdgeForConditionalGeneration(config)


def _cosmos3_omni() -> Any:
    vision = {
        "model_type": "qwen3_vl_vision",
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {**MROPE, "mrope_interleaved": True}
    config = transformers.Cosmos3OmniConfig(
        vision_config=vision,
        text_config=text("qwen3_vl_text", head_dim=16, rope_parameters=rope),
        **IDS,
        **BORDERS,
    )
    return transformers.Cosmos3OmniForConditionalGeneration(config)


_muse_glimmer = partial(_muse, "MuseGlimmer", "muse_glimmer_text")
_muse_clips = partial(_clips, width=96, separated=True)
_edge_clips = partial(_clips, width=48, separated=False)
_omni_clips = partial(_clips, width=96, separated=False)

FAMILIES = [
    Family("muse_glimmer", _muse_glimmer, partial(_grids, width=96), tolerance=SHARP),
    Family("muse_glimmer-video", _muse_glimmer, _muse_clips, modality="video", tolerance=SHARP),
    Family("muse_spark", _muse_spark, partial(_grids, width=96), tolerance=SHARP),
    Family("muse_spark-video", _muse_spark, _muse_clips, modality="video", tolerance=SHARP),
    Family("nemotron_h_omni", _nemotron, _nemotron_images),
    Family("cosmos3_edge", _cosmos3_edge, partial(_grids, width=48), extra=types),
    Family("cosmos3_edge-video", _cosmos3_edge, _edge_clips, modality="video", extra=types),
    Family("cosmos3_omni", _cosmos3_omni, partial(_grids, width=96), extra=types),
    Family("cosmos3_omni-video", _cosmos3_omni, _omni_clips, modality="video", extra=types),
]

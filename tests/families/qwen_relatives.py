"""Other Qwen families with vision, and Cohere Compass, which is built like Qwen3-VL."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .base import IDS, IMAGE, MROPE, RECURRENT, TEXT, VIDEO, VISION_END, VISION_START, Family, Pixels, types
from .qwen import SPECIAL, TOWER, images, videos

AUDIO, AUDIO_START, AUDIO_END = 156, 157, 158
VISION = {**TOWER, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 64}
DEEPSTACK = {**VISION, "depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
INTERLEAVED = {
    **TEXT,
    "head_dim": 16,
    "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2], "mrope_interleaved": True},
}
# DeepStack adds to the first three layers, so that two are left without it.
DEEP_TEXT = {**INTERLEAVED, "num_hidden_layers": 5}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
LINEAR = {
    **INTERLEAVED,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {
        **MROPE,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    },
}


def _qwen2_vl() -> Any:
    vision = {**TOWER, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": MROPE}, **SPECIAL)
    return transformers.Qwen2VLForConditionalGeneration(config)


def _qwen3_vl() -> Any:
    config = transformers.Qwen3VLConfig(vision_config=DEEPSTACK, text_config=DEEP_TEXT, **SPECIAL)
    return transformers.Qwen3VLForConditionalGeneration(config)


def _qwen3_vl_moe() -> Any:
    config = transformers.Qwen3VLMoeConfig(vision_config=DEEPSTACK, text_config={**DEEP_TEXT, **EXPERTS}, **SPECIAL)
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


def _qwen3_5() -> Any:
    config = transformers.Qwen3_5Config(vision_config=VISION, text_config=LINEAR, **SPECIAL)
    return transformers.Qwen3_5ForConditionalGeneration(config)


def _qwen3_5_moe() -> Any:
    text = {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}
    config = transformers.Qwen3_5MoeConfig(vision_config=VISION, text_config=text, **SPECIAL)
    return transformers.Qwen3_5MoeForConditionalGeneration(config)


def _qwen4_exp() -> Any:
    """With embeddings of n-grams in layer 3, and indexed attention to fewer tokens than the prompts have."""
    text = {
        **LINEAR,
        **EXPERTS,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "shared_expert_intermediate_size": 32,
        "hc_count": 2,
        "hc_lowrank": 16,
        "ple_layer_ids": [3],
        "ple_embed_dim": 32,
        "ple_conv_kernel_size": 2,
        "ngram_size": 3,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 100,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 24,
        "indexer_compress_ratio": 4,
    }
    config = transformers.Qwen4ExpConfig(vision_config=VISION, text_config=text, **SPECIAL)
    return transformers.Qwen4ExpForConditionalGeneration(config)


def _audio(**changes: Any) -> dict[str, Any]:
    return {
        "d_model": 32,
        "encoder_layers": 1,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "num_mel_bins": 16,
        "output_dim": 64,
        **changes,
    }


def _qwen2_5_omni() -> Any:
    vision = {
        **TOWER,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "window_size": 16,
        "fullatt_block_indexes": [2],
    }
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config=_audio(),
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": MROPE},
        audio_token_index=AUDIO,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_start_token_id=AUDIO_START,
        audio_end_token_id=AUDIO_END,
        vision_start_token_id=VISION_START,
    )
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)


def _qwen3_omni_moe() -> Any:
    config = transformers.Qwen3OmniMoeThinkerConfig(
        audio_config=_audio(downsample_hidden_size=16),
        vision_config=DEEPSTACK,
        text_config={**DEEP_TEXT, **EXPERTS},
        audio_token_id=AUDIO,
        audio_start_token_id=AUDIO_START,
        vision_start_token_id=VISION_START,
        **IDS,
    )
    return transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config)


def _cohere_compass() -> Any:
    """Its layers of full attention know no positions."""
    text = {
        **DEEP_TEXT,
        "rope_parameters": {"sliding_attention": DEEP_TEXT["rope_parameters"], "full_attention": None},
        "logit_scale": 1.0,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    }
    config = transformers.CohereCompassConfig(vision_config=DEEPSTACK, text_config=text, **SPECIAL)
    return transformers.CohereCompassForConditionalGeneration(config)


def stamped(counts: tuple[int, ...]) -> Pixels:
    """Videos as in `videos`, but every temporal step in a block of its own with its time before it."""
    pixels, _ = videos(counts)
    blocks = []
    for steps, height, width in pixels["video_grid_thw"].tolist():
        frame = [VISION_START, *[VIDEO] * (height * width // 4), VISION_END]
        blocks.append([token for step in range(steps) for token in (10, 20 + step, 30, 31, *frame)])
    return pixels, blocks


def _timed(counts: tuple[int, ...]) -> Pixels:
    pixels, blocks = videos(counts)
    return {**pixels, "video_second_per_grid": torch.ones(len(blocks))}, blocks


FAMILIES = [
    Family("qwen2_vl", _qwen2_vl, images, extra=types),
    Family("qwen2_vl-video", _qwen2_vl, videos, modality="video", extra=types),
    Family("qwen3_vl", _qwen3_vl, images, extra=types),
    Family("qwen3_vl-video", _qwen3_vl, stamped, modality="video", extra=types),
    Family("qwen3_vl_moe", _qwen3_vl_moe, images, extra=types),
    Family("qwen3_vl_moe-video", _qwen3_vl_moe, stamped, modality="video", extra=types),
    Family("qwen3_5", _qwen3_5, images, extra=types, tolerance=RECURRENT),
    Family("qwen3_5-video", _qwen3_5, stamped, modality="video", extra=types, tolerance=RECURRENT),
    Family("qwen3_5_moe", _qwen3_5_moe, images, extra=types, tolerance=RECURRENT),
    Family("qwen3_5_moe-video", _qwen3_5_moe, stamped, modality="video", extra=types, tolerance=RECURRENT),
    Family("qwen4_exp", _qwen4_exp, images, extra=types, tolerance=RECURRENT, since="5.23"),
    Family("qwen4_exp-video", _qwen4_exp, stamped, modality="video", extra=types, tolerance=RECURRENT, since="5.23"),
    Family("qwen2_5_omni_thinker", _qwen2_5_omni, images),
    Family("qwen2_5_omni_thinker-video", _qwen2_5_omni, _timed, modality="video"),
    Family("qwen3_omni_moe_thinker", _qwen3_omni_moe, images),
    Family("qwen3_omni_moe_thinker-video", _qwen3_omni_moe, _timed, modality="video"),
    Family("cohere_compass", _cohere_compass, images, extra=types),
    Family("cohere_compass-video", _cohere_compass, stamped, modality="video", extra=types),
]

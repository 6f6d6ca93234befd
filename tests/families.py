"""Tiny randomly initialised models of every supported family, and inputs for them.

Weights are drawn wide so that attention is peaky: a wrong mask, position or cache length moves logits by 0.1 to 4.
A new family adds one builder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

# Before this argument existed, `generate` repeated images one by one for beams and returned sequences, which mixes
# them up between samples with different image counts, and lost them in chunked prefill, dense or pruned.
PRE_ENCODES = "mm_encoder_outputs" in inspect.signature(transformers.LlavaForConditionalGeneration.forward).parameters
REPEATABLE = (2, 1) if PRE_ENCODES else (1, 1)

VOCABULARY, IMAGE, VIDEO, VISION_START, VISION_END = 160, 150, 151, 152, 153
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
    "projection_dim": 32,
}


@dataclass
class Family:
    """A tiny model and how to feed it.

    Attributes:
        name: for test ids.
        build: makes the model.
        modality: "image" or "video", what `inputs` puts into the prompt.
        pixels: maps a number of images to (pixel arguments, visual tokens per image).
        extra: maps [B, L] ids to further arguments.
    """

    name: str
    build: Callable[[], Any]
    pixels: Callable[[int], tuple[dict[str, torch.Tensor], list[int]]]
    modality: str = "image"
    borders: tuple[int, ...] = ()
    extra: Callable[[torch.Tensor], dict[str, torch.Tensor]] = field(default=lambda ids: {})

    def model(self, *, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
        model = self.build()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1 and "norm" in name:
                    parameter.add_(0.05 * noise)
                else:
                    parameter.copy_((0.12 if parameter.ndim > 1 else 0.05) * noise)
        model.set_attn_implementation(attention)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model.eval().to(dtype)

    def inputs(self, images: tuple[int, ...] = (1,), *, seed: int = 3, dtype: torch.dtype = torch.float32) -> dict:
        """A left-padded batch; images[b] images in sample b, each with text before and after."""
        pixels, lengths = self.pixels(sum(images))
        generator = torch.Generator().manual_seed(seed)
        token = VIDEO if self.modality == "video" else IMAGE
        rows, at = [], 0

        def text(n: int) -> list[int]:
            return torch.randint(5, 140, (n,), generator=generator).tolist()

        for sample, count in enumerate(images):
            row = text(5 - 2 * (sample % 2))
            for _ in range(count):
                visual = [token] * lengths[at]
                row += [VISION_START, *visual, VISION_END] if self.borders else visual
                row += text(2)
                at += 1
            rows.append(row + text(4 + sample % 3))
        length = max(map(len, rows))
        ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        pixels = {name: value.to(dtype) if value.is_floating_point() else value for name, value in pixels.items()}
        return {"input_ids": ids, "attention_mask": mask, **pixels, **self.extra(ids)}


def _llava() -> Any:
    config = transformers.LlavaConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_id=IMAGE, vision_feature_layer=-2
    )
    return transformers.LlavaForConditionalGeneration(config)


def _llava_pixels(n: int) -> tuple[dict[str, torch.Tensor], list[int]]:
    return {"pixel_values": torch.randn(n, 3, 24, 24, generator=torch.Generator().manual_seed(7))}, [36] * n


def _qwen2_5_vl() -> Any:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [2],
        "in_channels": 3,
        "tokens_per_second": 2,
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _qwen_pixels(n: int, *, video: bool = False) -> tuple[dict[str, torch.Tensor], list[int]]:
    grids = [[3, 8, 4 + 4 * (i % 2)] if video else [1, 8 + 4 * (i % 2), 12] for i in range(n)]
    patches = [t * h * w for t, h, w in grids]
    values = torch.randn(sum(patches), 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(7))
    names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
    return dict(zip(names, (values, torch.tensor(grids)), strict=True)), [count // 4 for count in patches]


def _qwen_types(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


LLAVA = Family("llava", _llava, _llava_pixels)
QWEN2_5_VL = Family("qwen2_5_vl", _qwen2_5_vl, _qwen_pixels, borders=(VISION_START, VISION_END), extra=_qwen_types)
QWEN2_5_VL_VIDEO = Family(
    "qwen2_5_vl-video",
    _qwen2_5_vl,
    lambda n: _qwen_pixels(n, video=True),
    modality="video",
    borders=(VISION_START, VISION_END),
    extra=_qwen_types,
)
FAMILIES = [LLAVA, QWEN2_5_VL, QWEN2_5_VL_VIDEO]

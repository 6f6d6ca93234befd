"""LLaVA and its relatives."""

from __future__ import annotations

from typing import Any

import transformers

from .base import CLIP, IMAGE, Family, Pixels, noise, text


def flat(counts: tuple[int, ...], *, size: int = 24, tokens: int = 36) -> Pixels:
    """Square images of one size, placeholders without borders."""
    n = sum(counts)
    return {"pixel_values": noise(n, 3, size, size)}, [[IMAGE] * tokens] * n


def _llava() -> Any:
    config = transformers.LlavaConfig(
        vision_config=CLIP, text_config=text("llama"), image_token_id=IMAGE, vision_feature_layer=-2
    )
    return transformers.LlavaForConditionalGeneration(config)


FAMILIES = [Family("llava", _llava, flat)]

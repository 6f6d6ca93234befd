"""MiniCPM: images whole or in slices, whose patches lie side by side in one wide image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from .base import (
    BREAK,
    IDS,
    IMAGE,
    RECURRENT,
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
from .documents import VIT

HYBRID = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
MROPE = {**ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True}


@dataclass(frozen=True)
class Prompts:
    """How a processor writes images and videos, and the sizes that the tests have of them, in tokens.

    Attributes:
        factor: patches along one side of a token.
        number: the tokens around the number of an image.
        zero: the number of the first image of a sample.
        slices: the tokens around a slice.
        newline: stands between two rows of slices.
        columns: slices in a row.
        part: height and width of a slice.
        widths: of the frames of the even and of the odd videos, which are two tokens high.
        dtype: of the sizes.
    """

    factor: int
    number: tuple[int, int] = (156, 157)
    zero: int = 5
    slices: tuple[int, int] = (158, 159)
    newline: int = BREAK
    columns: int = 2
    part: tuple[int, int] = (2, 3)
    widths: tuple[int, int] = (3, 4)
    dtype: torch.dtype = torch.int64

    def images(self, counts: tuple[int, ...]) -> Pixels:
        """Every other image as an overview of 3 x 4 tokens and two rows of slices; the others whole, 4 x 4."""
        (start, end), (height, width) = self.slices, self.part
        row = [start, *[IMAGE] * (height * width), end] * self.columns
        sliced, whole = bordered([12, 16])
        grids, blocks = [], []
        for i, number in enumerate(self._numbers(counts)):
            grids += [(4, 4)] if i % 2 else [(3, 4), *[self.part] * (2 * self.columns)]
            blocks.append([*number, *whole] if i % 2 else [*number, *sliced, *row, self.newline, *row])
        return self._strip(grids), blocks

    def videos(self, counts: tuple[int, ...]) -> Pixels:
        """Three frames, each with its borders, nothing between them."""
        grids, blocks = [], []
        for i, number in enumerate(self._numbers(counts)):
            width = self.widths[i % 2]
            grids += [(2, width)] * 3
            blocks.append([*number, *bordered([2 * width], VIDEO)[0] * 3])
        return self._strip(grids, "_videos"), blocks

    def _numbers(self, counts: tuple[int, ...]) -> list[list[int]]:
        """<image_id>0</image_id> and so on: images are counted within their sample."""
        start, end = self.number
        return [[start, self.zero + i, end] for count in counts for i in range(count)]

    def _strip(self, grids: list[tuple[int, int]], suffix: str = "") -> dict[str, torch.Tensor]:
        """Patches of all slices side by side, as the one wide image that the tower reads."""
        sizes = torch.tensor(grids, dtype=self.dtype) * self.factor
        return {
            f"pixel_values{suffix}": noise(1, 3, 4, 4 * int(sizes.prod(-1).sum())),
            f"target_sizes{suffix}": sizes,
        }


OCR, V4_7 = Prompts(factor=2), Prompts(factor=4)
V4_6 = Prompts(
    factor=4,
    number=(158, 159),
    zero=20,
    slices=(156, 157),
    newline=10,
    columns=1,
    part=(3, 4),
    widths=(4, 4),
    dtype=torch.int32,
)


def _minicpm(prefix: str, *, size: int = 32, rope: dict[str, Any] = MROPE, **changes: Any) -> Any:
    vision = {**VIT, "num_hidden_layers": 4, "image_size": size, "insert_layer_id": 1}
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision,
        text_config=text("qwen3_5_text", **HYBRID, rope_parameters=rope),
        insert_layer_id=1,
        tie_word_embeddings=False,
        **IDS,
        **changes,
    )
    return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)


def _minicpmv4_6() -> Any:
    return _minicpm("MiniCPMV4_6", size=64, rope=ROPE, image_size=64, patch_size=4)


def _minicpmv4_7() -> Any:
    start, end = V4_7.slices
    borders = {"image_start_id": VISION_START, "image_end_id": VISION_END, "newline_id": V4_7.newline}
    return _minicpm("MiniCPMV4_7", slice_start_id=start, slice_end_id=end, **borders)


def _minicpm_ocr() -> Any:
    return _minicpm("MiniCPMOcr")


FAMILIES = [
    Family("minicpmv4_6", _minicpmv4_6, V4_6.images, tolerance=RECURRENT, since="5.23"),
    Family("minicpmv4_6-video", _minicpmv4_6, V4_6.videos, modality="video", tolerance=RECURRENT),
    Family("minicpmv4_7", _minicpmv4_7, V4_7.images, extra=types, tolerance=RECURRENT),
    Family("minicpmv4_7-video", _minicpmv4_7, V4_7.videos, modality="video", extra=types, tolerance=RECURRENT),
    Family("minicpm_ocr", _minicpm_ocr, OCR.images, tolerance=RECURRENT),
    Family("minicpm_ocr-video", _minicpm_ocr, OCR.videos, modality="video", tolerance=RECURRENT),
]

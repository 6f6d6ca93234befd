"""Gemma and PaliGemma: images of one size, or pooled by the positions of their patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Adapter, Features, Layout, entries
from .layouts import in_squares, merged, one_to_one, pooled, squares
from .projectors import Find, averaged, single


def _by_positions(config: Any, features: Features) -> list[Layout]:
    """Gemma 4: sizes from the (x, y) of patches, -1 at padding; an entry per image, or per video with all frames."""
    positions = features.arguments.get(f"{features.modality}_position_ids")
    if positions is None:
        return entries(config, features)
    ends = positions.flatten(0, -3).amax(1) + 1
    counts = features.arguments.get("num_frames_per_video")
    counts = [1] * len(features.rows) if counts is None else [int(count) for count in counts]
    layouts, first = [], 0
    for n, frames in zip(features.rows, counts, strict=True):
        columns, rows = ends[first].tolist()
        layouts.append(merged(n, (frames, rows, columns)))
        first += frames
    return layouts


def _embedded(find: Find, x: Tensor) -> Tensor:
    return find("embed_vision")(inputs_embeds=x[:, 0][None])[0]


EMBEDDER = {"merger": "embed_vision", "patches": one_to_one, "project": _embedded}

GEMMA = (
    Adapter(
        model_type="paligemma",
        layouts=squares,
        merger="multi_modal_projector",
        patches=one_to_one,
        project=single("multi_modal_projector"),
        towers=("vision_tower",),
    ),
    Adapter(
        model_type="gemma3",
        layouts=squares,
        merger="multi_modal_projector",
        patches=pooled,
        project=averaged,
        towers=("vision_tower",),
        inside=in_squares,
    ),
    Adapter(model_type="gemma3n", layouts=squares, **EMBEDDER),
    Adapter(model_type="gemma4", layouts=_by_positions, **EMBEDDER),
    Adapter(model_type="gemma4_unified", layouts=_by_positions),
)

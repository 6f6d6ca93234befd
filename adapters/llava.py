"""LLaVA and its relatives: a projector that makes one row of every patch, 1-D positions."""

from __future__ import annotations

from functools import partial
from math import ceil, isqrt
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .base import Adapter, Features, Layout, in_order
from .layouts import (
    by_modality,
    crops,
    image_sizes,
    in_squares,
    one_to_one,
    packed_tiles,
    pooled,
    square,
    square_videos,
    squares,
)
from .projectors import average_of_projected, single


def _pooled_frames(config: Any, features: Features, values: Tensor, patches: int) -> Tensor:
    """LLaVA-NeXT-Video pools the patches of frames before its projector."""
    if features.modality == "image":
        return in_order(config, features, values, patches)
    pooled = features.rows[0] // features.pixels.shape[1]
    return in_squares(config, features, values, values.shape[1] // pooled).mean(1, keepdim=True)


def _of_images(config: Any, features: Features, entered: Tensor) -> Tensor | None:
    """LLaVA-OneVision interpolates the frames of videos behind its projector."""
    return None if features.modality == "video" else one_to_one(config, features, entered)


def _interpolated_frames(config: Any, features: Features, values: Tensor, patches: int) -> Tensor:
    """What the tower says of patches, interpolated as its features are; a newline row ends each video."""
    if features.modality == "image":
        return in_order(config, features, values, patches)
    side = isqrt(values.shape[1])
    frames = values.mT.unflatten(2, (side, side))
    small = F.interpolate(frames, size=2 * [ceil(side / 2)], mode="bilinear").flatten(2).mT
    videos = small.reshape(features.pixels.shape[0], -1, values.shape[-1])
    return F.pad(videos, (0, 0, 0, 1)).flatten(0, 1)[:, None]


MERGER = {"merger": "multi_modal_projector", "project": single("multi_modal_projector")}
PROJECTOR = {**MERGER, "patches": one_to_one, "towers": ("vision_tower",)}


def _llava(config: Any, features: Features) -> list[Layout]:
    pixtral = config.vision_config.model_type == "pixtral"
    return (image_sizes if pixtral else squares)(config, features)


def _frames_with_cls(config: Any, features: Features) -> list[Layout]:
    """Video-LLaVA: an entry per frame, its class token first."""
    frames = features.pixels.shape[1]
    return [crops([square(n - 1)] * frames, skip=1) for n in features.rows[::frames]]


def _tiles_or_frames(config: Any, features: Features) -> list[Layout]:
    """PerceptionLM: an entry per tile or frame, equally many of each image or video."""
    count = features.pixels.shape[1]
    return [crops([square(n)] * count) for n in features.rows[::count]]


LLAVA = (
    Adapter(model_type="llava", layouts=_llava, **PROJECTOR),
    Adapter(model_type="vipllava", layouts=squares, **PROJECTOR),
    Adapter(model_type="llava_next", layouts=packed_tiles, **PROJECTOR),
    Adapter(
        model_type="llava_next_video",
        layouts=by_modality(packed_tiles, square_videos),
        inside=_pooled_frames,
        **PROJECTOR,
    ),
    Adapter(
        model_type="llava_onevision",
        layouts=by_modality(packed_tiles, partial(square_videos, newline=1)),
        patches=_of_images,
        inside=_interpolated_frames,
        towers=("vision_tower",),
        **MERGER,
    ),
    Adapter(
        model_type="video_llava",
        layouts=by_modality(squares, _frames_with_cls),
        patches=one_to_one,
        towers=("image_tower", "video_tower"),
        **MERGER,
    ),
    Adapter(model_type="granite4_vision", layouts=packed_tiles, deepstack_only=True),
    Adapter(model_type="fast_vlm", layouts=squares, patches=one_to_one, **MERGER),
    Adapter(
        model_type="perception_lm",
        layouts=_tiles_or_frames,
        merger="multi_modal_projector",
        patches=pooled,
        project=average_of_projected,
    ),
)

"""LLaVA and its relatives: a projector that makes one row of every patch, 1-D positions."""

from __future__ import annotations

from functools import partial
from typing import Any

from .base import Adapter, Features, Layout
from .layouts import by_modality, crops, image_sizes, one_to_one, packed_tiles, square, square_videos, squares

PROJECTOR = {"merger": "multi_modal_projector", "patches": one_to_one}


def _llava(config: Any, features: Features) -> list[Layout]:
    pixtral = config.vision_config.model_type == "pixtral"
    return (image_sizes if pixtral else squares)(config, features)


def _frames_with_cls(config: Any, features: Features) -> list[Layout]:
    """Video-LLaVA: an entry per frame, its class token first."""
    frames = features.arguments["pixel_values_videos"].shape[1]
    return [crops([square(n - 1)] * frames, skip=1) for n in features.rows[::frames]]


def _tiles_or_frames(config: Any, features: Features) -> list[Layout]:
    """PerceptionLM: an entry per tile or frame, equally many of each image or video."""
    count = features.arguments["pixel_values"].shape[1]
    return [crops([square(n)] * count) for n in features.rows[::count]]


LLAVA = (
    Adapter(model_type="llava", layouts=_llava, **PROJECTOR),
    Adapter(model_type="vipllava", layouts=squares, **PROJECTOR),
    Adapter(model_type="llava_next", layouts=packed_tiles, **PROJECTOR),
    Adapter(model_type="llava_next_video", layouts=by_modality(packed_tiles, square_videos), **PROJECTOR),
    # Frames are pooled behind the projector, so a video's patches are not those that entered it.
    Adapter(model_type="llava_onevision", layouts=by_modality(packed_tiles, partial(square_videos, newline=1))),
    Adapter(model_type="video_llava", layouts=by_modality(squares, _frames_with_cls), **PROJECTOR),
    Adapter(model_type="granite4_vision", layouts=packed_tiles, deepstack_only=True),
    Adapter(model_type="fast_vlm", layouts=squares, **PROJECTOR),
    Adapter(model_type="perception_lm", layouts=_tiles_or_frames),
)

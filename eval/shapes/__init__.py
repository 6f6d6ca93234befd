"""Two small vision-language models and two classifiers trained in this repository, and what they are asked about.

Everything is loaded on first use, so that importing this package costs nothing.
"""

from importlib import import_module

_HOMES = {
    "inference": (
        "CHECKPOINT",
        "PREDICTOR",
        "VIDEO_CHECKPOINT",
        "answer",
        "answer_video",
        "load",
        "load_clip",
        "load_video",
        "prompt",
        "takes_features",
        "video_prompt",
    ),
    "heldout": ("Sample", "easy_vqa", "held_out"),
    "video_heldout": ("VideoSample", "held_out_clips", "shuffled"),
    "evaluate": ("accuracy",),
    "classifiers": ("MOTION_CHECKPOINT", "VIT_CHECKPOINT", "classify", "load_motion", "load_vit"),
    "vit_data": ("LABELS", "ObjectSample", "held_out_objects"),
    "motion_data": ("MOTIONS", "MotionSample", "held_out_motions"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)

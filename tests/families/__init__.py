"""Tiny randomly initialised models of every supported family, and inputs for them.

A new family adds one builder to a file here; FAMILIES parametrises the tests and the table in docs/families.md.
"""

import transformers
from transformers import CONFIG_MAPPING

from . import anyres, documents, gemma, glm, kimi, llava, minicpm, omni, others, qwen, qwen_relatives, tiled
from .base import CLIP, IMAGE, PRE_ENCODES, REPEATABLE, TEXT, VIDEO, Family

MODULES = (llava, qwen, qwen_relatives, gemma, anyres, tiled, glm, kimi, documents, minicpm, others, omni)
# Families that wrap refuses, with the reason it gives.
REFUSED = {
    "minimax_m3_vl-sparse": "takes position ids for cache slots",
    "unlimited_ocr": "keeps as many slots as the unpruned prompt",
}
# Model types whose decoder cannot lose tokens between its layers (granite4_vision: of these few), with the reason given
REFUSED_INSIDE = {
    "granite4_vision": "adds visual features to all of them up to layer 3",
    "qwen4_exp": "its layers look up runs of neighbouring tokens",
    "glm5_next": "its layers index tokens",
    "inkling2": "its layers read the states of all tokens",
}
ALL: list[Family] = [family for module in MODULES for family in module.FAMILIES]
INSTALLED = tuple(map(int, transformers.__version__.split(".")[:2]))
BUILT = [
    family
    for family in ALL
    if family.model_type in CONFIG_MAPPING and tuple(map(int, family.since.split("."))) <= INSTALLED
]
FAMILIES = [family for family in BUILT if family.name not in REFUSED]
BY_NAME = {family.name: family for family in BUILT}
# Whose processors write videos as videos, and as images
VIDEO_TYPES = ("llava_onevision", "llava_next_video", "video_llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
VIDEOS = [BY_NAME[f"{name}-video"] for name in VIDEO_TYPES if f"{name}-video" in BY_NAME]
FRAMES = [BY_NAME["internvl-video"], BY_NAME["smolvlm-video"]]
LLAVA, QWEN2_5_VL, QWEN2_5_VL_VIDEO = (BY_NAME[name] for name in ("llava", "qwen2_5_vl", "qwen2_5_vl-video"))

__all__ = [
    "ALL",
    "BUILT",
    "BY_NAME",
    "CLIP",
    "FAMILIES",
    "FRAMES",
    "IMAGE",
    "LLAVA",
    "PRE_ENCODES",
    "QWEN2_5_VL",
    "QWEN2_5_VL_VIDEO",
    "REFUSED",
    "REFUSED_INSIDE",
    "REPEATABLE",
    "TEXT",
    "VIDEO",
    "VIDEOS",
    "Family",
]

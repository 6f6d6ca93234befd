"""Vision-language models that answer with a fraction of their visual tokens, on stock transformers.

handle = tokenprune.wrap(model, "cdpruner", keep=64)
model.generate(**inputs)
print(handle.report())
handle.remove()
"""

from . import errors
from .budget import Budget
from .errors import *  # noqa: F403
from .policies import (
    DART,
    TRIM,
    CDPruner,
    CDPrunerOpenVINO,
    ClipRelevance,
    DivPrune,
    FasterVLM,
    FeatureNorm,
    HiPrune,
    HoloV,
    LocalVariance,
    MMTok,
    NoPruning,
    Norm,
    Policy,
    Pool,
    ProjectorPolicy,
    PruMerge,
    PruMergePlus,
    Random,
    Resize,
    Sensitivity,
    TextRelevance,
    Uniform,
    VisionAttention,
    VisionZip,
    VisPruner,
    ZooPrune,
)
from .registry import get_policy, list_policies, register
from .report import DecoderShape, Report, UnitReport
from .tokens import Selection, Tap, VisualTokens
from .wrap import Handle, wrap

__all__ = [
    "DART",
    "TRIM",
    "Budget",
    "CDPruner",
    "CDPrunerOpenVINO",
    "ClipRelevance",
    "DecoderShape",
    "DivPrune",
    "FasterVLM",
    "FeatureNorm",
    "Handle",
    "HiPrune",
    "HoloV",
    "LocalVariance",
    "MMTok",
    "NoPruning",
    "Norm",
    "Policy",
    "Pool",
    "ProjectorPolicy",
    "PruMerge",
    "PruMergePlus",
    "Random",
    "Report",
    "Resize",
    "Selection",
    "Sensitivity",
    "Tap",
    "TextRelevance",
    "Uniform",
    "UnitReport",
    "VisPruner",
    "VisionAttention",
    "VisionZip",
    "VisualTokens",
    "ZooPrune",
    "errors",
    "get_policy",
    "list_policies",
    "register",
    "wrap",
]

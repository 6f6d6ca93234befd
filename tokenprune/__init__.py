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
    CDPruner,
    CDPrunerOpenVINO,
    ClipRelevance,
    DivPrune,
    NoPruning,
    Policy,
    Pool,
    ProjectorPolicy,
    Random,
    TextRelevance,
    Uniform,
)
from .registry import get_policy, list_policies, register
from .report import DecoderShape, Report, UnitReport
from .tokens import Selection, VisualTokens
from .wrap import Handle, wrap

__all__ = [
    "Budget",
    "CDPruner",
    "CDPrunerOpenVINO",
    "ClipRelevance",
    "DecoderShape",
    "DivPrune",
    "Handle",
    "NoPruning",
    "Policy",
    "Pool",
    "ProjectorPolicy",
    "Random",
    "Report",
    "Selection",
    "TextRelevance",
    "Uniform",
    "UnitReport",
    "VisualTokens",
    "errors",
    "get_policy",
    "list_policies",
    "register",
    "wrap",
]

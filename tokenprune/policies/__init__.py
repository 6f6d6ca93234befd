"""One file per method; importing this package registers them all."""

from .base import Policy, ProjectorPolicy
from .baselines import NoPruning, Norm, Pool, Random, Uniform
from .cdpruner import CDPruner
from .cdpruner_openvino import CDPrunerOpenVINO
from .dart import DART
from .divprune import DivPrune
from .fastervlm import FasterVLM
from .hiprune import HiPrune
from .holov import HoloV
from .mmtok import MMTok
from .prumerge import PruMerge, PruMergePlus
from .quality import FeatureNorm, LocalVariance, VisionAttention
from .relevance import ClipRelevance, TextRelevance
from .resize import Resize
from .sensitivity import Sensitivity
from .trim import TRIM
from .visionzip import VisionZip
from .vispruner import VisPruner
from .zooprune import ZooPrune

__all__ = [
    "DART",
    "TRIM",
    "CDPruner",
    "CDPrunerOpenVINO",
    "ClipRelevance",
    "DivPrune",
    "FasterVLM",
    "FeatureNorm",
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
    "Resize",
    "Sensitivity",
    "TextRelevance",
    "Uniform",
    "VisPruner",
    "VisionAttention",
    "VisionZip",
    "ZooPrune",
]

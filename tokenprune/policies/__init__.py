"""One file per method; importing this package registers them all."""

from .adaptinfer import AdaptInfer
from .base import Policy, ProjectorPolicy
from .baselines import NoPruning, Norm, Pool, Random, Uniform
from .cdpruner import CDPruner
from .cdpruner_openvino import CDPrunerOpenVINO
from .dart import DART
from .debias import DebiasedScore, debiased
from .debiasing import Debiased
from .divprune import DivPrune
from .fastervlm import FasterVLM
from .fastv import FastV
from .himap import HiMAP
from .hiprune import HiPrune
from .holov import HoloV
from .layer import LayerPolicy, at_mean, mean_share
from .layer_random import RandomLayers
from .mmtok import MMTok
from .prumerge import PruMerge, PruMergePlus
from .pyramiddrop import PyramidDrop
from .quality import FeatureNorm, LocalVariance, VisionAttention
from .relevance import ClipRelevance, TextRelevance
from .resize import Resize
from .schedule import ScheduledPolicy
from .sensitivity import Sensitivity
from .sparsevlm import SparseVLM
from .trend import Trend
from .trim import TRIM
from .visionzip import VisionZip
from .vispruner import VisPruner
from .zooprune import ZooPrune

__all__ = [
    "DART",
    "TRIM",
    "AdaptInfer",
    "CDPruner",
    "CDPrunerOpenVINO",
    "ClipRelevance",
    "Debiased",
    "DebiasedScore",
    "DivPrune",
    "FastV",
    "FasterVLM",
    "FeatureNorm",
    "HiMAP",
    "HiPrune",
    "HoloV",
    "LayerPolicy",
    "LocalVariance",
    "MMTok",
    "NoPruning",
    "Norm",
    "Policy",
    "Pool",
    "ProjectorPolicy",
    "PruMerge",
    "PruMergePlus",
    "PyramidDrop",
    "Random",
    "RandomLayers",
    "Resize",
    "ScheduledPolicy",
    "Sensitivity",
    "SparseVLM",
    "TextRelevance",
    "Trend",
    "Uniform",
    "VisPruner",
    "VisionAttention",
    "VisionZip",
    "ZooPrune",
    "at_mean",
    "debiased",
    "mean_share",
]

"""One file per method; importing this package registers them all."""

from . import texts as texts
from .adaptinfer import AdaptInfer
from .base import Policy, ProjectorPolicy
from .baselines import NoPruning, Norm, Pool, Random, Uniform
from .cdpruner import CDPruner
from .cdpruner_openvino import CDPrunerOpenVINO
from .covipal import CoViPAL
from .dart import DART
from .debias import DebiasedScore, debiased
from .debiasing import Debiased
from .divprune import DivPrune
from .dycoke import DyCoke
from .evit import EViT
from .evs import EVS
from .fastervlm import FasterVLM
from .fastv import FastV
from .fastvid import FastVID
from .frame_features import FrameClassToken, FrameMean
from .framefusion import FrameFusion
from .ftp import FTP
from .himap import HiMAP
from .hiprune import HiPrune
from .holitom import HoliTom
from .holitom_inner import HoliTomInner
from .holov import HoloV
from .layer import LayerPolicy, at_mean, mean_share
from .layer_random import RandomLayers
from .mmtok import MMTok
from .prumerge import PruMerge, PruMergePlus
from .prunevid import PruneVid
from .prunevid_inside import PruneVidInside
from .pyramiddrop import PyramidDrop
from .quality import FeatureNorm, LocalVariance, VisionAttention
from .random_blocks import RandomBlocks
from .relevance import ClipRelevance, TextRelevance
from .resize import Resize
from .schedule import ScheduledPolicy
from .sensitivity import Sensitivity
from .skipping import SkipPolicy, SkipTokens
from .sparsevlm import SparseVLM
from .sta import STA
from .tome import ToMe
from .trend import Trend
from .trim import TRIM
from .uniform_frames import UniformFrames
from .vidcom2 import VidCom2
from .video import VideoPolicy
from .vision import VisionPolicy
from .visionzip import VisionZip
from .vispruner import VisPruner
from .zooprune import ZooPrune

__all__ = [
    "DART",
    "EVS",
    "FTP",
    "STA",
    "TRIM",
    "AdaptInfer",
    "CDPruner",
    "CDPrunerOpenVINO",
    "ClipRelevance",
    "CoViPAL",
    "Debiased",
    "DebiasedScore",
    "DivPrune",
    "DyCoke",
    "EViT",
    "FastV",
    "FastVID",
    "FasterVLM",
    "FeatureNorm",
    "FrameClassToken",
    "FrameFusion",
    "FrameMean",
    "HiMAP",
    "HiPrune",
    "HoliTom",
    "HoliTomInner",
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
    "PruneVid",
    "PruneVidInside",
    "PyramidDrop",
    "Random",
    "RandomBlocks",
    "RandomLayers",
    "Resize",
    "ScheduledPolicy",
    "Sensitivity",
    "SkipPolicy",
    "SkipTokens",
    "SparseVLM",
    "TextRelevance",
    "ToMe",
    "Trend",
    "Uniform",
    "UniformFrames",
    "VidCom2",
    "VideoPolicy",
    "VisPruner",
    "VisionAttention",
    "VisionPolicy",
    "VisionZip",
    "ZooPrune",
    "at_mean",
    "debiased",
    "mean_share",
]

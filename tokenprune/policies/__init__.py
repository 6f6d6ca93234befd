"""One file per method; importing this package registers them all."""

from .base import Policy, ProjectorPolicy
from .baselines import NoPruning, Pool, Random, Uniform
from .cdpruner import CDPruner
from .cdpruner_openvino import CDPrunerOpenVINO
from .divprune import DivPrune
from .relevance import ClipRelevance, TextRelevance

__all__ = [
    "CDPruner",
    "CDPrunerOpenVINO",
    "ClipRelevance",
    "DivPrune",
    "NoPruning",
    "Policy",
    "Pool",
    "ProjectorPolicy",
    "Random",
    "TextRelevance",
    "Uniform",
]

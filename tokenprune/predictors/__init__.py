"""Small trained modules that policies ask, each saved in a folder of its own."""

from .base import Predictor
from .pruning_module import PruningModule
from .router import TokenRouter
from .saliency import SaliencyPredictor

__all__ = ["Predictor", "PruningModule", "SaliencyPredictor", "TokenRouter"]

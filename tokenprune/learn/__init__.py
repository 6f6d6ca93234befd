"""Training of the small modules that learned policies ask. The base model stays frozen."""

from .adtp import SaliencyRecipe, train_adtp
from .covipal import Recipe, train_covipal
from .data import Example, Examples, examples
from .decoders import load_decoder
from .encoders import load_encoder, read_texts
from .ftp import RouterRecipe, train_ftp
from .ftp_schedule import Search, search_schedules
from .loop import Plan, train

__all__ = [
    "Example",
    "Examples",
    "Plan",
    "Recipe",
    "RouterRecipe",
    "SaliencyRecipe",
    "Search",
    "examples",
    "load_decoder",
    "load_encoder",
    "read_texts",
    "search_schedules",
    "train",
    "train_adtp",
    "train_covipal",
    "train_ftp",
]

"""Runs of `tokenprune eval` beside each other, and beside times of `tokenprune bench`."""

from .drawing import plot
from .runs import Run, read
from .tables import table

__all__ = ["Run", "plot", "read", "table"]

"""Counting what a computation allocates, for the tests."""

from tokenprune.eval.allocations import MIB, Allocations

__all__ = ["MIB", "Allocations"]

"""What papers published for their policies, and the commands that measure it: `python -m tokenprune.eval.recipes`."""

from .checking import check
from .comparing import compared, measured, table
from .reading import Benchmark, Recipe, Row, benchmarks, command, commands, names, read, suites

__all__ = [
    "Benchmark",
    "Recipe",
    "Row",
    "benchmarks",
    "check",
    "command",
    "commands",
    "compared",
    "measured",
    "names",
    "read",
    "suites",
    "table",
]

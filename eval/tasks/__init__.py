"""Local tasks of lmms-eval about pictures, clips and questions of this package: `python -m tokenprune.eval.tasks`."""

from .build import GROUP, TASKS, built
from .embedded import EMBEDDED

__all__ = ["EMBEDDED", "GROUP", "TASKS", "built"]

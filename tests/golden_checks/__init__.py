"""File-name prefix of golden vectors -> check of an open .npz. A new method adds its check to the file of its kin."""

from . import attention, diversity, pivots_and_coverage

FAMILIES = {**attention.FAMILIES, **diversity.FAMILIES, **pivots_and_coverage.FAMILIES}

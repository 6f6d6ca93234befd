"""File-name prefix of golden vectors -> check of an open .npz. A new method adds its check to the file of its kin."""

from . import attention, debiasing, diversity, in_decoder, pivots_and_coverage

FAMILIES = {
    **attention.FAMILIES,
    **debiasing.FAMILIES,
    **diversity.FAMILIES,
    **in_decoder.FAMILIES,
    **pivots_and_coverage.FAMILIES,
}

"""File-name prefix of golden vectors -> check of an open .npz. A new method adds its check to the file of its kin."""

from . import attention, debiasing, diversity, exact_rows, in_decoder, pivots_and_coverage

FAMILIES = {
    **attention.FAMILIES,
    **debiasing.FAMILIES,
    **diversity.FAMILIES,
    **exact_rows.FAMILIES,
    **in_decoder.FAMILIES,
    **pivots_and_coverage.FAMILIES,
}

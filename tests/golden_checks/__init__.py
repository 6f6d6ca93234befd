"""File-name prefix of golden vectors -> check of an open .npz. A new method adds its check to the file of its kin."""

from . import (
    attention,
    debiasing,
    diversity,
    exact_rows,
    in_decoder,
    in_decoder_on_videos,
    pivots_and_coverage,
    video_merging,
    video_pruning,
    vision_transformers,
)

FAMILIES = {
    **attention.FAMILIES,
    **debiasing.FAMILIES,
    **diversity.FAMILIES,
    **exact_rows.FAMILIES,
    **in_decoder.FAMILIES,
    **in_decoder_on_videos.FAMILIES,
    **pivots_and_coverage.FAMILIES,
    **video_merging.FAMILIES,
    **video_pruning.FAMILIES,
    **vision_transformers.FAMILIES,
}

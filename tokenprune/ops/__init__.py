"""Pure tensor functions: no model, no state. Batched over G units, in float32."""

from .attention import attention_probabilities, attention_rows, join_heads, received_attention
from .bipartite import bipartite_match
from .chains import chain_map, chain_similarity
from .coverage import greedy_coverage
from .density import centre_weights, density_peaks, density_scores, nearest_centre, recycled_map
from .dither import ordered_dither
from .draw import draw
from .folding import fold_into_nearest
from .frames import best_of_each, frame_change, similarity_cuts, true_places
from .greedy import greedy_dpp, greedy_max_min, top_k
from .grid import even_points, interleave_crops, interleave_dominant, points_on_grid, sources_on_grid
from .matching import gather_rows, nearest_neighbours, nearest_target, thin_by_matching
from .merge import (
    add_weighted,
    average_by_source,
    remaining,
    sizes_by_source,
    sum_by_source,
    summary_map,
)
from .mrope import media_mrope, mrope_delta, retained_count, sequence_positions
from .normalise import image_extremes, min_max, unit_norm
from .outliers import count_outliers
from .pivots import least_similar_to_pivots
from .plain import nearest_other
from .quota import quotas
from .relevance import mean_cosine
from .reselect import reselected
from .rotary import rotary_gravity
from .segments import best_share, best_windows, even_shares, join_segments, refine_labels
from .sensitivity import second_moment, zeroth_order
from .sent import sent
from .temporal import (
    At,
    loosen,
    mean_similarity,
    merge_static,
    tokens_by_segment,
    weakest_step,
)
from .texts import inner_tokens, keep_best, tokens_left
from .transition import carried_on
from .variance import runs, similarity_variance
from .words import block_rank, pack, word_relevance

__all__ = [
    "At",
    "add_weighted",
    "attention_probabilities",
    "attention_rows",
    "average_by_source",
    "best_of_each",
    "best_share",
    "best_windows",
    "bipartite_match",
    "block_rank",
    "carried_on",
    "centre_weights",
    "chain_map",
    "chain_similarity",
    "count_outliers",
    "density_peaks",
    "density_scores",
    "draw",
    "even_points",
    "even_shares",
    "fold_into_nearest",
    "frame_change",
    "gather_rows",
    "greedy_coverage",
    "greedy_dpp",
    "greedy_max_min",
    "image_extremes",
    "inner_tokens",
    "interleave_crops",
    "interleave_dominant",
    "join_heads",
    "join_segments",
    "keep_best",
    "least_similar_to_pivots",
    "loosen",
    "mean_cosine",
    "mean_similarity",
    "media_mrope",
    "merge_static",
    "min_max",
    "mrope_delta",
    "nearest_centre",
    "nearest_neighbours",
    "nearest_other",
    "nearest_target",
    "ordered_dither",
    "pack",
    "points_on_grid",
    "quotas",
    "received_attention",
    "recycled_map",
    "refine_labels",
    "remaining",
    "reselected",
    "retained_count",
    "rotary_gravity",
    "runs",
    "second_moment",
    "sent",
    "sequence_positions",
    "similarity_cuts",
    "similarity_variance",
    "sizes_by_source",
    "sources_on_grid",
    "sum_by_source",
    "summary_map",
    "thin_by_matching",
    "tokens_by_segment",
    "tokens_left",
    "top_k",
    "true_places",
    "unit_norm",
    "weakest_step",
    "word_relevance",
    "zeroth_order",
]

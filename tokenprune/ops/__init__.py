"""Pure tensor functions: no model, no state. Batched over G units, in float32."""

from .attention import attention_probabilities, attention_rows, join_heads, received_attention
from .coverage import greedy_coverage
from .density import density_peaks, recycled_map
from .draw import draw
from .greedy import greedy_dpp, greedy_max_min, nearest_other, similarity_row, top_k
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
from .normalise import image_extremes, min_max, unit_norm
from .outliers import count_outliers
from .pivots import least_similar_to_pivots
from .quota import quotas
from .relevance import mean_cosine
from .rotary import rotary_gravity
from .sensitivity import second_moment, zeroth_order
from .variance import runs, similarity_variance
from .words import block_rank, pack, word_relevance

__all__ = [
    "add_weighted",
    "attention_probabilities",
    "attention_rows",
    "average_by_source",
    "block_rank",
    "count_outliers",
    "density_peaks",
    "draw",
    "even_points",
    "gather_rows",
    "greedy_coverage",
    "greedy_dpp",
    "greedy_max_min",
    "image_extremes",
    "interleave_crops",
    "interleave_dominant",
    "join_heads",
    "least_similar_to_pivots",
    "mean_cosine",
    "min_max",
    "nearest_neighbours",
    "nearest_other",
    "nearest_target",
    "pack",
    "points_on_grid",
    "quotas",
    "received_attention",
    "recycled_map",
    "remaining",
    "rotary_gravity",
    "runs",
    "second_moment",
    "similarity_row",
    "similarity_variance",
    "sizes_by_source",
    "sources_on_grid",
    "sum_by_source",
    "summary_map",
    "thin_by_matching",
    "top_k",
    "unit_norm",
    "word_relevance",
    "zeroth_order",
]

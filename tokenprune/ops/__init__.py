"""Pure tensor functions: no model, no state. Batched over G units, in float32, free of host synchronisation."""

from .greedy import greedy_dpp, greedy_max_min, nearest_other, similarity_row, top_k
from .grid import even_points, interleave_crops, points_on_grid, sources_on_grid
from .merge import average_by_source
from .normalise import min_max, unit_norm
from .relevance import mean_cosine

__all__ = [
    "average_by_source",
    "even_points",
    "greedy_dpp",
    "greedy_max_min",
    "interleave_crops",
    "mean_cosine",
    "min_max",
    "nearest_other",
    "points_on_grid",
    "similarity_row",
    "sources_on_grid",
    "top_k",
    "unit_norm",
]

"""What an adapter states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Grid = tuple[int, int, int]


def _no_problem(config: Any) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What the runtime cannot find out about a family by itself. Paths are relative to `model.base_model`.

    Attributes:
        model_type: `config.model_type`.
        tower: path of the module whose call makes the visual rows the language model reads.
        lengths: maps (config, kwargs and positional inputs by name, output) of one call of `tower` to the number of
            rows of every image or video, in order.
        grid: maps (config, n, positions) to (frames, rows, columns) of an image or video of n tokens, or None;
            `positions` is [3, n] (time, row, column) for M-RoPE models and None otherwise.
        projector: path of the module that turns tower features into visual rows, one row for one row; None where
            rows are merged on the way, so that no tower feature belongs to one visual token alone.
        problem: maps the config to the reason why this variant is not supported, or None.
    """

    model_type: str
    tower: str
    lengths: Callable[[Any, tuple, dict[str, Any], Any], list[int]]
    grid: Callable[[Any, int, Tensor | None], Grid | None]
    projector: str | None = None
    problem: Callable[[Any], str | None] = _no_problem

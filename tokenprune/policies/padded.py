"""Which visual tokens show the picture, where the processor pastes it in the middle of a square."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, nearest
from ..layers import LayerTokens
from ..ops.padding import Padding, content_cells


def check_padding(padding: Padding | None, threshold: float) -> None:
    """
    Raises:
        InvalidArgumentError: one of them has a value that it cannot have.
    """
    if padding not in (None, *get_args(Padding)):
        raise InvalidArgumentError(
            f"padding={padding!r} is not one of {', '.join(get_args(Padding))}, or None"
            f"{nearest(padding, get_args(Padding))}."
        )
    if not (type(threshold) in (int, float) and 0 <= threshold < 1):
        raise InvalidArgumentError(f"threshold={threshold!r} is not in [0, 1): give a share of padding.")


def shows_picture(tokens: LayerTokens, padding: Padding, threshold: float) -> Tensor:
    """[G, N] bool, False where a token's cell of the padded picture is padding. All True where it is no square.

    Raises:
        InvalidArgumentError: the size of a picture is not known.
    """
    frames, rows, columns = tokens.grid or (0, 0, 0)
    if frames != 1 or rows != columns:
        return torch.ones_like(tokens.place, dtype=torch.bool)
    sizes = tokens.image_sizes or [None]
    if None in sizes:
        raise InvalidArgumentError(
            f"padding={padding!r} has to know the size of every picture, and that of one is not known: set "
            "handle.image_sizes to their (width, height) before the processor, or leave padding=None."
        )
    content = content_cells([tuple(size) for size in sizes], rows, padding, threshold)
    return content.to(tokens.place.device).gather(1, tokens.place)

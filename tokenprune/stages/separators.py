"""Newline and row-break tokens of lines that have lost all their tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .visual import Item


def drop_empty(items: list[Item], keep: Tensor) -> None:
    """Take separators of empty lines out of `keep` [B, L] bool, on the CPU, in place.

    A newline row goes when no row of its line is kept; a row-break token, which follows every line but the last of an
    image, goes when its line is empty. What closes an image stays.
    """
    for item in items:
        row, layout = keep[item.sample].clone(), item.layout
        kept = row[item.slots]
        if layout.line_end is not None:
            ends = torch.unique(layout.line_end[layout.line_end >= 0])
            for end in ends.tolist():
                if not bool(kept[layout.line_end == end].any()):
                    keep[item.sample, item.slots[end]] = False
        if layout.breaks and layout.grids[0] is not None:
            _, lines, columns = layout.grids[0]
            for line in range(lines - 1):
                inside = slice(line * columns, (line + 1) * columns)
                after = int(item.slots[inside][-1]) + 1
                if not bool(kept[inside].any()) and after < int(item.slots[(line + 1) * columns]):
                    keep[item.sample, after] = False

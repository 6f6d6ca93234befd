"""Qwen2.5-VL: packed tower with a 2 x 2 merger, M-RoPE positions, images and videos."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Adapter, Grid


def _lengths(config: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> list[int]:
    grid_thw = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
    return (grid_thw.prod(-1) // config.vision_config.spatial_merge_size**2).tolist()


def _grid(config: Any, n: int, positions: Tensor | None) -> Grid | None:
    if positions is None:
        return None
    _, rows, columns = (int(axis.max() - axis.min()) + 1 for axis in positions)
    frames, rest = divmod(n, rows * columns)  # time steps may be spaced, so frames are counted, not read
    return (frames, rows, columns) if rest == 0 else None


QWEN2_5_VL = Adapter(model_type="qwen2_5_vl", tower="visual", lengths=_lengths, grid=_grid)

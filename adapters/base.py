"""What an adapter states, and the words it states it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..tokens import Tap

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the rows of one image, tile or video lie: n rows, in the order of their placeholders.

    Attributes:
        crop: [n] long on the CPU, which crop (base view, tile) a row belongs to; -1 where a row is no patch but a
            newline or separator, which policies neither see nor remove.
        grids: (frames, rows, columns) of every crop, whose rows come in raster order; None where they form no grid.
        line_end: [n] long, place of the newline row that ends the line of each row, -1 where none does.
        breaks: a text token follows every line of the grid but the last (row-break tokens).
        patches: [n] long, which row of `Adapter.patches` each row was made from, -1 for none, counted over the whole
            encoding; None where they are the rows of the image in order.
    """

    crop: Tensor
    grids: tuple[Grid | None, ...]
    line_end: Tensor | None = None
    breaks: bool = False
    patches: Tensor | None = None

    def __len__(self) -> int:
        return len(self.crop)

    def subset(self, keep: Tensor) -> Layout:
        """The rows where `keep` [n] bool holds; crops that lose some form no grid any longer."""
        whole = [bool(keep[self.crop == number].all()) for number in range(len(self.grids))]
        grids = tuple(grid if all_there else None for grid, all_there in zip(self.grids, whole, strict=True))
        patches = torch.arange(len(self)) if self.patches is None else self.patches
        return Layout(crop=self.crop[keep], grids=grids, patches=patches[keep])


@dataclass(kw_only=True)
class Features:
    """One call of the model's `get_image_features` or `get_video_features`.

    Attributes:
        modality: "image" or "video".
        arguments: of the call, by name; empty for features that were encoded elsewhere.
        rows: per entry of the output (its `pooler_output`), how many rows it has.
        entered: what entered the adapter's `merger`, call by call; only if a policy asked for it.
        tower: for every tap that a policy asked for, values of all positions, call by call [B, L, c].
        prefix: how many class and register tokens precede the patches of an image in the tower.
        packed: per image [n] float64, where the model packs tiles itself: which row of the projector's output each row
            came from, -1 for newlines, fractions where it interpolates.
        tile: rows of one tile before packing.
        runs: calls of a tower that tokens left.
    """

    modality: Literal["image", "video"]
    arguments: dict[str, Any] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    entered: list[Tensor] = field(default_factory=list)
    tower: dict[Tap, list[Tensor]] = field(default_factory=dict)
    prefix: int = 0
    packed: list[Tensor] = field(default_factory=list)
    tile: int = 0
    runs: list[Any] = field(default_factory=list)

    @property
    def pixels(self) -> Any:
        """The pixels that were given: their shape is all that is kept."""
        return next(value for name, value in self.arguments.items() if name.startswith("pixel_values"))


def whole(n: int, grid: Grid | None = None, **extra: Any) -> Layout:
    """n rows that are one crop."""
    return Layout(crop=torch.zeros(n, dtype=torch.long), grids=(grid,), **extra)


def entries(config: Any, features: Features) -> list[Layout]:
    """Every entry of the encoder's output is one image (tile, video) whose grid is not known."""
    return [whole(n) for n in features.rows]


def in_order(config: Any, features: Features, values: Tensor, patches: int) -> Tensor:
    """Patches of one token follow each other in the tower."""
    return values.reshape(-1, patches, values.shape[-1])


def no_problem(config: Any) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What the runtime cannot find out about a family by itself.

    Attributes:
        model_type: `config.model_type`.
        layouts: maps (config, features) to one layout per image, tile or video, in order; together they have the rows
            of the features.
        join: which neighbouring image layouts are tiles of one image: "never"; "run", those without a token between;
            "near", those with at most one; "global" or "first", where every image ends, or begins, with a view of the
            whole: up to, or from, one that follows the same token as the last, or first, of its sample.
        crops: the layouts that are joined are crops; False where they are single tokens.
        merger: path below `model.base_model` of the module whose input are tower features, or None where none is
            known to belong to single visual tokens.
        patches: maps (config, features, input of one call of the merger) to [rows, P, d_v], the P patches of every
            row, or to None where this encoding mixed them.
        project: maps (what finds a module by its path below `model.base_model`, patches [rows, P, d_v]) to the rows
            [rows, D] that the model makes of them, or None where a row is not made of its own patches alone.
        towers: paths of the vision towers whose positions are known to be the patches in the order `inside` says.
        inside: maps (config, features, values [B, L, c] of a tower's positions without class tokens, P) to
            [rows, P, c], in the order of `patches`.
        row_mask: argument of the model's forward, [rows of a video] bool, that drops rows before they are read.
        deepstack_only: the decoder's input is zero at visual positions, and everything visual is added at its layers.
        problem: maps the config to the reason why this variant is not supported, or None.
        between_layers: why tokens cannot leave between its decoder's layers, or None.
    """

    model_type: str
    layouts: Callable[[Any, Features], list[Layout]] = entries
    join: Literal["never", "run", "near", "global", "first"] = "never"
    crops: bool = True
    merger: str | None = None
    patches: Callable[[Any, Features, Tensor], Tensor | None] | None = None
    project: Callable[[Callable[[str], nn.Module], Tensor], Tensor] | None = None
    towers: tuple[str, ...] = ()
    inside: Callable[[Any, Features, Tensor, int], Tensor] = in_order
    row_mask: str | None = None
    deepstack_only: bool = False
    problem: Callable[[Any], str | None] = no_problem
    between_layers: str | None = None

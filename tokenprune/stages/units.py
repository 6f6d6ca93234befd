"""Units: what a budget is counted over, and what becomes of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ..adapters import Adapter, Features, Grid
from ..budget import Unit
from ..errors import UnsupportedPolicyError
from ..report import UnitReport
from .visual import Item


@dataclass
class UnitState:
    """One unit while policies work on it.

    Attributes:
        sample, unit, kind: as in `UnitReport`.
        image: number of the image or video it was cut from.
        key: see `VisualTokens.keys`.
        slots: [n] long on the device, positions in the segment of the tokens still there, ascending.
        grid: of the tokens still there.
        encoder: [n, P, d_v] or None.
        place: [n] long on the device, places of `slots` in the unit as it was.
        source: [total] long on the device, which of `slots` carries each original token, or -1.
        full_grid, full_slots: of the unit as it was.
    """

    sample: int
    unit: int
    kind: str
    image: int
    key: int
    slots: Tensor
    grid: Grid | None
    encoder: Tensor | None = None
    place: Tensor = field(init=False)
    source: Tensor = field(init=False)
    full_grid: Grid | None = field(init=False)
    full_slots: Tensor = field(init=False)

    def __post_init__(self):
        self.place = self.source = torch.arange(len(self.slots), device=self.slots.device)
        self.full_grid, self.full_slots = self.grid, self.slots

    def report(self) -> UnitReport:
        place, source = self.place.cpu(), self.source.cpu()
        return UnitReport(
            sample=self.sample,
            unit=self.unit,
            kind=self.kind,
            total=len(source),
            kept=len(place),
            grid=self.full_grid,
            indices=place,
            source=source,
            slots=self.full_slots.cpu(),
        )


@dataclass(frozen=True)
class _Piece:
    """The tokens of one crop, or of one frame of it, before they are joined to units."""

    item: Item
    key: int
    slots: Tensor
    grid: Grid | None
    encoder: Tensor | None


def make_units(
    items: list[Item], keys: list[int], *, adapter: Adapter, config, per: Unit, device: torch.device
) -> list[UnitState]:
    """Images and videos, cut into or joined to the units the budget is counted over.

    Args:
        keys: one per item.
        per: unit of the budget.

    Raises:
        UnsupportedPolicyError: `per="frame"` where the frames of a video are not known.
    """
    if per == "crop" and not adapter.crops:
        per = "image"  # which is then its only crop
    patches: dict[int, Tensor | None] = {}
    for item in items:
        if id(item.features) not in patches:
            patches[id(item.features)] = _patches(item.features, adapter, config)
    pieces = []
    for item, key in zip(items, keys, strict=True):
        encoder = _own_patches(item, patches[id(item.features)])
        pieces += _split(item, key, encoder, frames=per == "frame")
    units, count = [], Counter()
    for (sample, _), group in groupby(pieces, key=lambda piece: (piece.item.sample, _unit_of(piece, per))):
        group = list(group)
        first, video = group[0].item, group[0].item.modality == "video"
        cut = (per == "frame" and video) or (per == "crop" and not video)
        number = count[sample]
        count[sample] += 1
        slots = torch.cat([piece.slots for piece in group])
        order = slots.argsort()  # lines of neighbouring tiles lie between each other
        encoder = None
        if all(piece.encoder is not None for piece in group):
            encoder = torch.cat([piece.encoder for piece in group])
        units.append(
            UnitState(
                sample=sample,
                unit=number,
                kind=per if cut or per == "prompt" else first.modality,
                image=first.image,
                key=group[0].key + (number if cut else 0),
                slots=slots[order].to(device),
                grid=_joined_grid(group),
                encoder=None if encoder is None else encoder[order.to(encoder.device)],
            )
        )
    return units


def _unit_of(piece: _Piece, per: Unit) -> object:
    """Neighbouring pieces of a sample with the same answer are one unit."""
    if per == "prompt":
        return None
    if per == "image" or (per == "crop") == (piece.item.modality == "video"):
        return piece.item.image
    return id(piece)


def _split(item: Item, key: int, encoder: Tensor | None, *, frames: bool) -> list[_Piece]:
    """One piece per crop, per frame of a crop where `frames` asks for it. Rows that are no patch stay out."""
    pieces = []
    if frames and item.modality == "video" and item.layout.grids == (None,):
        raise UnsupportedPolicyError(
            "per='frame' needs the frames of the video, which are not known here: use per='image' or 'prompt'."
        )
    for number, grid in enumerate(item.layout.grids):
        inside = (item.layout.crop == number).nonzero()[:, 0]
        count = grid[0] if frames and grid is not None else 1
        grid = (1, *grid[1:]) if count > 1 else grid
        for rows in inside.chunk(count):
            if len(rows):
                own = None if encoder is None else encoder[rows.to(encoder.device)]
                pieces.append(_Piece(item, key, item.slots[rows], grid, own))
    return pieces


def _joined_grid(group: list[_Piece]) -> Grid | None:
    """Frames of one size are one grid; other pieces are one only when alone."""
    grids = {piece.grid for piece in group}
    grid = group[0].grid
    if len(group) == 1:
        return grid
    frames = len(grids) == 1 and grid is not None and group[0].item.modality == "video"
    same = len({piece.item.image for piece in group}) == 1
    return (grid[0] * len(group), *grid[1:]) if frames and same else None


def _patches(features: Features, adapter: Adapter, config) -> Tensor | None:
    """[rows of the merger's output, P, d_v], None where none were captured."""
    if adapter.patches is None or not features.entered:
        return None
    patches = [adapter.patches(config, features, entered) for entered in features.entered]
    return None if patches[0] is None else torch.cat(patches)


def _own_patches(item: Item, patches: Tensor | None) -> Tensor | None:
    """[n, P, d_v] of the rows of one item."""
    if patches is None:
        return None
    if item.layout.patches is None:
        return patches[item.first : item.first + len(item.slots)]
    if bool((item.layout.patches < 0).logical_and(item.layout.crop >= 0).any()):
        return None  # interpolated: no patch is a row's own
    return patches[item.layout.patches.clamp_min(0).to(patches.device)]

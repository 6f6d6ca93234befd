"""Units: what a budget is counted over, and what becomes of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, Features, Grid
from ..budget import Unit
from ..errors import UnsupportedPolicyError
from ..ops import sent
from ..policies.base import Policy
from ..report import UnitReport
from .visual import Item


@dataclass
class UnitState:
    """One unit while policies work on it.

    Attributes:
        sample, unit, kind: as in `UnitReport`.
        modalities: "image", "video" or both, of its tokens.
        image: number of the image or video it was cut from.
        key: see `VisualTokens.keys`.
        places: [total] long on the CPU, positions in the segment of its tokens, ascending.
        slots: [n] long on the device, those of the tokens still there.
        grid: of the tokens still there.
        inside: for "encoder" and every tap that was captured [n, P, c]; empty where patches of rows are not known.
        place: [n] long on the device, places of `slots` in the unit as it was.
        source: [total] long on the device, which of `slots` carries each original token, or -1.
        merged: some of `slots` are merged tokens.
        full_grid, full_slots: of the unit as it was.
    """

    sample: int
    unit: int
    kind: str
    modalities: frozenset[str]
    image: int
    key: int
    places: Tensor
    slots: Tensor
    grid: Grid | None
    inside: dict[Any, Tensor] = field(default_factory=dict)
    place: Tensor = field(init=False)
    source: Tensor = field(init=False)
    merged: bool = False
    full_grid: Grid | None = field(init=False)
    full_slots: Tensor = field(init=False)

    def __post_init__(self):
        self.place = self.source = torch.arange(len(self.slots), device=self.slots.device)
        self.full_grid, self.full_slots = self.grid, self.slots

    def narrow(self, kept: Tensor, source: Tensor, *, merged: bool) -> None:
        """Some tokens are left.

        Args:
            kept: [k] long, ascending places in `slots`.
            source: [n] long, for every one of `slots` which of `kept` carries it, or -1.
            merged: some carry others.
        """
        kept, source = kept.to(self.slots.device), source.to(self.slots.device)
        self.slots, self.place, self.grid = self.slots[kept], self.place[kept], None
        self.source = torch.where(self.source >= 0, source[self.source.clamp_min(0)], -1)
        self.merged |= merged
        self.inside = {need: values[kept.to(values.device)] for need, values in self.inside.items()}

    def drop(self) -> None:
        """No token is left."""
        none = self.slots[:0]
        self.narrow(none, torch.full_like(self.slots, -1), merged=False)

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
            slots=self.places,
        )


def places_of(units: list[UnitState], like: Tensor) -> Tensor:
    """[B, L] bool on the CPU, the positions of all units as they came."""
    own = torch.zeros_like(like)
    for unit in units:
        own[unit.sample, unit.places] = True
    return own


def kept_of(units: list[UnitState], batch: int) -> Tensor:
    """[B] long on the CPU, how many tokens the units of each sample have left."""
    counts = torch.zeros(batch, dtype=torch.long)
    for unit in units:
        counts[unit.sample] += len(unit.slots)
    return counts


def grouped(units: list[UnitState], policy: Policy) -> list[list[int]]:
    """Numbers of the units a policy is asked about that share a budget: each its own, or one `of` an image or a prompt.

    Raises:
        UnsupportedPolicyError: a unit is partly of a modality that the policy leaves alone.
    """
    groups: dict[Any, list[int]] = {}
    for i, unit in enumerate(units):
        if not unit.modalities & policy.kinds:
            continue
        if not unit.modalities <= policy.kinds:
            raise UnsupportedPolicyError(
                f"per={policy.per!r} makes one unit of images and videos, and policy {policy.name!r} is about "
                f"{' and '.join(sorted(policy.kinds))}s only: use per='image', with of='prompt' for one budget."
            )
        shared = {None: i, "prompt": unit.sample, "image": (unit.sample, unit.image)}[policy.of]
        groups.setdefault(shared, []).append(i)
    return list(groups.values())


@dataclass(frozen=True)
class _Piece:
    """The tokens of one crop, or of one frame of it, before they are joined to units."""

    item: Item
    key: int
    slots: Tensor
    grid: Grid | None
    inside: dict[Any, Tensor]


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
    captured: dict[int, dict[Any, Tensor]] = {}
    for item in items:
        if id(item.features) not in captured:
            captured[id(item.features)] = _captured(item.features, adapter, config)
    pieces = []
    for item, key in zip(items, keys, strict=True):
        inside = _own(item, captured[id(item.features)])
        pieces += _split(item, key, inside, frames=per == "frame")
    units, count = [], Counter()
    for (sample, _), group in groupby(pieces, key=lambda piece: (piece.item.sample, _unit_of(piece, per))):
        group = list(group)
        first, video = group[0].item, group[0].item.modality == "video"
        cut = (per == "frame" and video) or (per == "crop" and not video)
        number = count[sample]
        count[sample] += 1
        slots = torch.cat([piece.slots for piece in group])
        slots, order = slots.sort()  # lines of neighbouring tiles lie between each other
        known = set(group[0].inside).intersection(*(piece.inside for piece in group))
        inside = {need: torch.cat([piece.inside[need] for piece in group]) for need in known}
        if len(group) > 1 and known:
            inside = {need: values[sent(order, values.device)] for need, values in inside.items()}
        units.append(
            UnitState(
                sample=sample,
                unit=number,
                kind=per if cut or per == "prompt" else first.modality,
                modalities=frozenset(piece.item.modality for piece in group),
                image=first.image,
                key=group[0].key + (number if cut else 0),
                places=slots,
                slots=sent(slots, device),
                grid=_joined_grid(group),
                inside=inside,
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


def _split(item: Item, key: int, inside: dict[Any, Tensor], *, frames: bool) -> list[_Piece]:
    """One piece per crop, per frame of a crop where `frames` asks for it. Rows that are no patch stay out."""
    pieces = []
    if frames and item.modality == "video" and item.layout.grids == (None,):
        raise UnsupportedPolicyError(
            "per='frame' needs the frames of the video, which are not known here: use per='image' or 'prompt'."
        )
    for number, grid in enumerate(item.layout.grids):
        patches = (item.layout.crop == number).nonzero()[:, 0]
        count = grid[0] if frames and grid is not None else 1
        grid = (1, *grid[1:]) if count > 1 else grid
        for rows in patches.chunk(count):
            if len(rows):
                own = inside if len(rows) == len(item.slots) else _taken(inside, rows)
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


def _captured(features: Features, adapter: Adapter, config) -> dict[Any, Tensor]:
    """[rows of the merger's output, P, c] for "encoder" and every tap; empty where none were captured."""
    if adapter.patches is None or not features.entered:
        return {}
    patches = [adapter.patches(config, features, entered) for entered in features.entered]
    inside = {} if patches[0] is None else {"encoder": torch.cat(patches)}
    if inside:
        rows, count = inside["encoder"].shape[:2]
        positions = rows * count
    else:  # rows of patches that were mixed, one made of those around its place
        rows, count = sum(map(len, adapter.layouts(config, features))), 1
        positions = sum(entered.shape[:-1].numel() for entered in features.entered)
    for tap, calls in features.tower.items():
        values = torch.cat(calls, dim=1 if len(calls[0]) == 1 else 0)
        if values.shape[1] * len(values) != positions:
            values = values[:, features.prefix :]
        before = len(values) * values.shape[1]
        values = adapter.inside(config, features, values, count)
        exact = "encoder" in inside and len(values) * count == before  # no position was mixed with others
        if len(values) == rows and (exact or tap.what != "carrier"):  # else rows were made of several positions
            inside[tap] = values
    return inside


def _own(item: Item, captured: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """[n, P, c] of the rows of one item."""
    if item.layout.patches is None:
        return {need: values[item.first : item.first + len(item.slots)] for need, values in captured.items()}
    if bool((item.layout.patches < 0).logical_and(item.layout.crop >= 0).any()):
        return {}  # interpolated: no patch is a row's own
    return _taken(captured, item.layout.patches.clamp_min(0))


def _taken(inside: dict[Any, Tensor], rows: Tensor) -> dict[Any, Tensor]:
    return {need: values[sent(rows, values.device)] for need, values in inside.items()}

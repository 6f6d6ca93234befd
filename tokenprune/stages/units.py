"""Units: what a budget is counted over, and what becomes of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import UnsupportedPolicyError
from ..report import UnitReport
from .visual import Item

Grid = tuple[int, int, int]


@dataclass
class UnitState:
    """One unit while policies work on it.

    Attributes:
        sample, unit, kind: as in `UnitReport`.
        image: number of the image or video it was cut from.
        key: see `VisualTokens.keys`.
        slots: [n] long on the device, positions in the segment of the tokens still there, ascending.
        grid: of the tokens still there.
        encoder: [n, d_v] or None.
        place: [n] long on the device, places of `slots` in the unit as it was.
        source: [total] long on the device, which of `slots` carries each original token, or -1.
        full_grid: of the unit as it was.
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

    def __post_init__(self):
        self.place = self.source = torch.arange(len(self.slots), device=self.slots.device)
        self.full_grid = self.grid

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
        )


def make_units(
    items: list[Item], keys: list[int], *, adapter: Adapter, config, per: str, axes: Tensor | None, device: torch.device
) -> list[UnitState]:
    """Images and videos, cut into or joined to the units the budget is counted over.

    Args:
        keys: one per item.
        per: unit of the budget.
        axes: [3, B | 1, L] M-RoPE positions on the CPU, None for 1-D positions.

    Raises:
        UnsupportedPolicyError: `per="frame"` where the frames of a video are not known.
    """
    units = []
    for number, (item, key) in enumerate(zip(items, keys, strict=True)):
        at = None if axes is None else axes[:, item.sample % axes.shape[1], item.slots]
        grid = adapter.grid(config, len(item.slots), at)
        frames, kind = 1, item.modality
        if per == "frame" and item.modality == "video":
            if grid is None:
                raise UnsupportedPolicyError(
                    "per='frame' needs the frames of the video, which are not known here: use per='image' or 'prompt'."
                )
            frames, kind, grid = grid[0], "frame", (1, *grid[1:])
        encoders = [None] * frames if item.encoder is None else item.encoder.chunk(frames)
        for frame, (slots, encoder) in enumerate(zip(item.slots.to(device).chunk(frames), encoders, strict=True)):
            units.append(
                UnitState(
                    sample=item.sample,
                    unit=item.ordinal if frames == 1 else frame,
                    kind=kind,
                    image=number,
                    key=key + frame,
                    slots=slots,
                    grid=grid,
                    encoder=encoder,
                )
            )
    return _join_by_sample(units) if per == "prompt" else units


def _join_by_sample(units: list[UnitState]) -> list[UnitState]:
    """One unit of all visual tokens of a sample."""
    groups: dict[int, list[UnitState]] = {}
    for unit in units:
        groups.setdefault(unit.sample, []).append(unit)
    joined = []
    for group in groups.values():
        first = group[0]
        joined.append(
            replace(
                first,
                unit=0,
                kind="prompt",
                slots=torch.cat([unit.slots for unit in group]),
                grid=first.grid if len(group) == 1 else None,
                encoder=None if first.encoder is None else torch.cat([unit.encoder for unit in group]),
            )
        )
    return joined

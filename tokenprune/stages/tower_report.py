"""What a run through a vision tower did, as reports."""

from __future__ import annotations

import torch

from ..report import TowerReport
from .blocks import Block
from .tower_run import Run


def tower_reports(run: Run, blocks: list[Block]) -> list[TowerReport]:
    """One per image, in the order the tower was given them. Reads the device."""
    found: dict[int, TowerReport] = {}
    sizes = [_weights(block) for block in blocks]
    for group, members in zip(run.groups, run.packing.members, strict=True):
        total = group.total - run.prefix
        for i, places, source in zip(members, group.places.cpu(), group.source.cpu(), strict=True):
            indices = (places[run.prefix :] - run.prefix).sort().values
            carrier = torch.where(source >= 0, places[source.clamp_min(0)] - run.prefix, -1)[run.prefix :]
            place = torch.searchsorted(indices, carrier.clamp_min(0))
            found[i] = TowerReport(
                total=total,
                kept=len(indices),
                grid=group.grid,
                indices=indices,
                source=torch.where(carrier >= 0, place, -1),
                blocks=list(group.lengths),
                weights=sizes[: len(group.lengths)],
                tokens=group.total,
            )
    return [found[i] for i in sorted(found)]


def _weights(block: Block) -> tuple[int, int, int]:
    """Numbers in the matrices of a block's attention and of the rest of it, and its width."""
    inside = next(child for child in block.module.children() if block.attention in child.modules())
    attention = sum(p.numel() for p in inside.parameters() if p.ndim == 2)
    every = sum(p.numel() for p in block.module.parameters() if p.ndim == 2)
    return attention, every - attention, next(p.shape[0] for p in block.norm.parameters())

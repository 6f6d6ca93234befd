"""Stage `vision` in a vision-language model: its towers, and what becomes of them in front of the decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from ..adapters import Features
from ..blocks import Grid
from ..errors import NotEngagedError, UnsupportedPolicyError
from ..policies.vision import VisionPolicy
from ..report import TowerReport
from ..tokens import Tap
from .blocks import deepstack_blocks, find_blocks, prefix_of, read_layers, whole_picture
from .features import FeatureWatch
from .parts import Parts
from .tower_report import tower_reports
from .tower_run import Run
from .units import UnitState
from .vision import Tower, VisionStage, check_class_token
from .visual import Item

CARRIER = Tap("carrier")


class TowerStage:
    """The hooks inside the vision towers of one vision-language model, which go on answering as many rows as ever.

    Args:
        parts: of the model.
        policy: decides.
        watch: knows the encoding that runs.
        active: whether anything is pruned now.

    Raises:
        UnsupportedPolicyError: the towers are none that tokens can leave, or lack what the policy needs.
    """

    def __init__(self, parts: Parts, policy: VisionPolicy, watch: FeatureWatch, *, active: Callable[[], bool]):
        self.policy, self._family, self._watch = policy, parts.adapter.model_type, watch
        self._alone = parts.adapter.project is not None  # tokens are made of their own patches alone
        self._stages = [
            VisionStage(
                self._tower(parts, path),
                policy,
                restore=True,
                active=lambda: active() and watch.current is not None,
                grid=partial(_grid, parts.module(path)),
                done=self._done,
            )
            for path in parts.adapter.towers
        ]
        if not self._stages:
            raise UnsupportedPolicyError(
                f"policy={policy.name!r} works inside the vision tower, and that of {self._family!r} is none whose "
                "tokens are known to be patches: use a policy behind it (stage 'projector')."
            )

    def _tower(self, parts: Parts, path: str) -> Tower:
        module = parts.module(path)
        blocks = find_blocks(module)
        if not blocks:
            raise UnsupportedPolicyError(
                f"policy={self.policy.name!r} works inside the blocks of the vision tower, and those of "
                f"{self._family!r} are not of a shape that is known: use a policy behind it (stage 'projector')."
            )
        check_class_token(self.policy, module, self._family)
        count = len(blocks)
        read = sorted({i % count for i in (*read_layers(parts.config, count), *deepstack_blocks(module))})
        whole = [i for i in whole_picture(module, count) if i <= read[-1]]
        return Tower(self._family, module, blocks, prefix_of(module), read, whole)

    def install(self) -> None:
        for stage in self._stages:
            stage.install()
        self._watch.taps.expanded = self._expanded

    def remove(self) -> None:
        for stage in reversed(self._stages):
            stage.remove()

    def reports(self, run: Run) -> list[TowerReport]:
        return tower_reports(run, self._stages[0].tower.blocks)

    def narrow(self, units: list[UnitState], items: list[Item], *, restore: bool | None) -> bool:
        """Take out of the units what no longer has a token of its own, unless all are to be read. Whether any went.

        Raises:
            NotEngagedError: the tower ran without our hooks.
            UnsupportedPolicyError: tokens are made of several patches, so that none of them can go, and some should.
        """
        carriers = [unit.inside.pop(CARRIER, None) for unit in units]
        if any(not item.features.arguments and not item.features.runs for item in items):
            raise NotEngagedError(
                f"policy {self.policy.name!r} works inside the vision tower, and mm_encoder_outputs were encoded "
                "before the model was wrapped: pass pixel_values, or encode after wrap."
            )
        if not runs_of(items):
            return False
        if self.policy.merges if restore is None else restore:
            self._check_restored()
            return False
        if not self._alone or any(carrier is None or carrier.shape[1] != 1 for carrier in carriers):
            self._check_restored()
            raise UnsupportedPolicyError(
                f"restore=False needs one token for one patch, and {self._family!r} makes tokens of several patches, "
                "or mixes them: use restore=None."
            )
        went = [self._narrowed(unit, carrier[:, 0]) for unit, carrier in zip(units, carriers, strict=True)]
        return any(went)

    def _check_restored(self) -> None:
        if not self.policy.merges:
            raise UnsupportedPolicyError(
                f"policy {self.policy.name!r} drops patches, which leave holes in what the language model reads where "
                f"all tokens are restored, or where a token is made of several patches, as in {self._family!r}: use "
                "'tome', which merges, or a policy behind the tower (stage 'projector')."
            )

    def _narrowed(self, unit: UnitState, carrier: Tensor) -> bool:
        """Args: carrier: [n, 2], a number for every token of the unit, and that of the one that carries it."""
        own, by = carrier.to(unit.slots.device).long().T.contiguous()
        n, (carriers, number) = len(own), by.unique(return_inverse=True)
        # each is stood for by the carrier, or by its first where that was cut off with the padding of a picture
        place = torch.arange(n, device=own.device) + n * (own != by)
        first = place.new_full((len(carriers),), 2 * n).scatter_reduce(0, number, place, "amin") % n
        dropped = int((carriers < 0).sum())
        kept, order = first[dropped:].sort()
        if len(kept) == n:
            return False
        rank = torch.cat([order.new_full((dropped,), -1), order.argsort()])
        unit.narrow(kept, rank[number], merged=False)
        return True

    def _expanded(self, value: Tensor) -> Tensor:
        for stage in self._stages:
            value = stage.expanded(value)
        return value

    def _done(self, run: Run) -> None:
        features = self._watch.current
        features.runs.append(run)
        before = sum(one.shape[:-1].numel() for one in features.tower.get(CARRIER, ()))
        features.prefix = run.prefix
        features.tower.setdefault(CARRIER, []).append(run.carriers(before))


def _grid(tower: nn.Module, patches: int) -> Grid | None:
    """Of square pictures of a fixed size."""
    config = getattr(tower, "config", None)
    sizes = [getattr(config, name, None) for name in ("image_size", "patch_size")]
    size, patch = ((one, one) if isinstance(one, int) else tuple(one or (0, 1)) for one in sizes)
    grid = 1, size[0] // patch[0], size[-1] // patch[-1]
    return grid if prod(grid) == patches else None


def runs_of(items: list[Item]) -> list[Run]:
    """Calls of a tower that tokens left, for these images and videos."""
    features: dict[int, Features] = {id(item.features): item.features for item in items}
    return [run for one in features.values() for run in one.runs]

"""Plain vision transformers: classifiers and encoders without a language model, of transformers or timm."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..blocks import Grid
from ..errors import UnsupportedPolicyError
from ..policies.vision import VisionPolicy
from ..report import Report, UnitReport
from .blocks import find_blocks, prefix_of
from .cache import Life
from .hook import Hook, by_name
from .tower_report import tower_reports
from .tower_run import Run
from .vision import Tower, VisionStage, check_class_token

# In the names of classes of transformers that make pictures of patches
DENSE_TASKS = ("Backbone", "DepthEstimation", "Segmentation", "Detection", "Masked", "PreTraining", "Matting", "Pose")


@dataclass(frozen=True)
class PlainParts:
    """A vision transformer that is called by itself.

    Attributes:
        model: as the user gave it.
        tower: the part of it that has the blocks.
    """

    model: nn.Module
    tower: nn.Module

    @property
    def entered(self) -> tuple[nn.Module, ...]:
        """Modules whose call is a forward."""
        return self.model, self.tower


def find_plain(model: Any) -> PlainParts | None:
    """The parts of a plain vision transformer, None where `model` is none of a kind that is known."""
    if not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):  # hooks in a compiled graph do nothing
        return None
    if getattr(model, "can_generate", bool)():  # a language model beside it, of a family that is not known
        return None
    tower = next((part for name in ("vision_model", "timm_model") if (part := getattr(model, name, None))), model)
    transformers = isinstance(tower, PreTrainedModel) and tower.main_input_name.startswith("pixel_values")
    if getattr(getattr(tower, "config", None), "use_mid_position_embeddings", False):  # YOLOS adds them in every block
        return None
    timm = hasattr(tower, "num_prefix_tokens") and hasattr(tower, "forward_features")
    return PlainParts(model, tower) if (transformers or timm) and find_blocks(tower) else None


def _makes_grids(parts: PlainParts) -> bool:
    """Whether the model reshapes tokens to a picture, by the name of its class."""
    names = {type(parts.model).__name__, type(parts.tower).__name__}
    return any(task in name for name in names for task in DENSE_TASKS)


class PlainStages:
    """The hooks of one plain vision transformer.

    Args:
        parts: of the model.
        policy: decides.

    Raises:
        UnsupportedPolicyError: the model lacks what the policy needs.
    """

    def __init__(self, parts: PlainParts, policy: VisionPolicy):
        self.parts, self.policy = parts, policy
        self.enabled, self.life = True, Life()
        blocks = find_blocks(parts.tower)
        every = list(range(len(blocks)))
        tower = Tower(type(parts.model).__name__, parts.tower, blocks, prefix_of(parts.tower), [every[-1]], every)
        check_class_token(policy, parts.tower, tower.name)
        if not policy.merges and _makes_grids(parts):
            raise UnsupportedPolicyError(
                f"policy={policy.name!r} drops patches, and {tower.name} makes pictures of those it has: use 'tome', "
                "which merges, so that every place has its token."
            )
        self.stage = VisionStage(
            tower,
            policy,
            restore=policy.merges,
            active=self._active,
            everywhere=lambda: not getattr(self._local, "inside", False),
            grid=self._grid,
            begun=self._begun,
        )
        self._last: Run | None = None
        self._local = threading.local()  # of the forward that runs: pixels' shape, and that it does run
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Register the hooks; on any failure none stays."""
        try:
            self._hooks.append(self.parts.tower.register_forward_pre_hook(Hook(self._enter), with_kwargs=True))
            self._hooks.append(self.parts.tower.register_forward_hook(Hook(self._exit), always_call=True))
            self.stage.install()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        self.life.alive = False
        self.stage.remove()
        while self._hooks:
            self._hooks.pop().remove()

    @property
    def every_policy(self) -> list[VisionPolicy]:
        return [self.policy]

    def report(self) -> Report:
        """What the last forward did. Reads the device only here."""
        towers = [] if self._last is None else tower_reports(self._last, self.stage.tower.blocks)
        units = [
            UnitReport(
                sample=i,
                unit=0,
                kind="image" if tower.grid is None or tower.grid[0] == 1 else "video",
                total=tower.total,
                kept=tower.kept,
                grid=tower.grid,
                indices=tower.indices,
                source=tower.source,
                slots=tower.source.new_tensor(range(tower.total)) + self.stage.tower.prefix,
            )
            for i, tower in enumerate(towers)
        ]
        return Report(
            policy=repr(self.policy), stage=self.policy.stage, positions="original", units=units, towers=towers
        )

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = by_name(module, args, kwargs)
        pixels = next((value for value in given.values() if hasattr(value, "shape")), None)
        self._local.shape, self._local.inside = None if pixels is None else tuple(pixels.shape), True

    def _exit(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._local.shape, self._local.inside = None, False

    def _begun(self, run: Run) -> None:
        self._last = run

    def _active(self) -> bool:
        if self.enabled and not self.policy.merges and _makes_grid(self.parts.tower):
            raise UnsupportedPolicyError(
                f"policy {self.policy.name!r} drops patches, and output_fmt='NCHW' makes pictures of those there are: "
                "give output_fmt='NLC', or use 'tome', which merges."
            )
        return self.enabled

    def _grid(self, patches: int) -> Grid | None:
        """From the pixels' shape and the size of a patch, where they fit."""
        tower = self.parts.tower
        config, embed = getattr(tower, "config", None), getattr(tower, "patch_embed", None)
        size = getattr(config, "patch_size", None) or getattr(embed, "patch_size", None) or 1
        shape = getattr(self._local, "shape", None)
        if shape is None or len(shape) < 4:
            return None
        down, across = size if isinstance(size, (tuple, list)) else (size, size)
        tubelet = getattr(config, "tubelet_size", None) or 1
        if isinstance(tubelet, (tuple, list)):  # of frames, rows and columns
            tubelet, down, across = tubelet
        frames = shape[1] // tubelet if len(shape) == 5 else 1
        grid = frames, shape[-2] // down, shape[-1] // across
        return grid if prod(grid) == patches else None


def _makes_grid(module: nn.Module) -> bool:
    """Whether a method of a timm model runs that answers pictures of features, for which there is no hook."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_locals.get("self") is module and frame.f_locals.get("output_fmt") == "NCHW":
            return True
        frame = frame.f_back
    return False


def is_bare(model: Any) -> bool:
    """A module that is neither a language model nor compiled, nor only calls another one."""
    if not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
        return False
    return not isinstance(getattr(model, "module", None), nn.Module) and not hasattr(model, "generate")

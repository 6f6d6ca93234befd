"""How a model is pruned, and what its last forward came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .happened import History
from .tower_run import Run
from .units import UnitState


@dataclass
class Outcome:
    """What `report` is made from: nothing that would keep a cache or pixels alive.

    Attributes:
        units: after the policies.
        lengths: [B, 2], tokens before and after, padding left out.
        elapsed: milliseconds of the selection in front of the decoder, None if not asked for.
        towers: what happened inside the tower.
        history: what happened inside the decoder.
    """

    units: list[UnitState]
    lengths: Tensor
    elapsed: float | None
    towers: list[Run]
    history: History = field(default_factory=History)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is pruned, whatever the policy.

    Attributes:
        positions: "original" (kept tokens keep their ids), "compact" (renumbered without gaps), or None for what each
            policy does by itself.
        logits: "kept" (one row per token left) or "full" (the prompt's length).
        drop_empty_rows: newline and row-break tokens of lines without any kept token leave too.
        images_are_frames: the images of a prompt are the frames of one video.
        restore: as many tokens as ever are read of a tower that was shortened; None: where its policy merges.
        tokenizer: turns the prompt into the instruction's text, for policies that need it.
        timing: synchronise the device around the selection and report its time.
    """

    positions: str | None = None
    logits: str = "kept"
    drop_empty_rows: bool = False
    images_are_frames: bool = False
    restore: bool | None = None
    tokenizer: Any = None
    timing: bool = False

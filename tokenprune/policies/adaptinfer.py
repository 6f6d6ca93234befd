"""AdaptInfer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..budget import Rounding
from ..errors import InvalidArgumentError
from ..layers import Attention, Event
from ..registry import register
from .schedule import ScheduledPolicy


@register("adaptinfer")
@dataclass(kw_only=True)
class AdaptInfer(ScheduledPolicy):
    """The tokens that the text attends to, each word weighed by its part in the attention among the words.

    In layer l, for every head h, with T2T [T, T] and T2V [T, V] the text rows of its attention over text and visual
    tokens: W = T2T + T2T^T - diag(T2T), a^h_t = sum over s of W_ts (what word t gives to words, plus what it gets from
    later ones, less what it gives itself), s_j = sum over h and t of a^h_t T2V^h_tj. The tokens of the largest s enter
    layer l + 1.

    Attributes:
        layers: l, whose own attention scores; tokens leave the input of the layer behind it.
        lb: weight of this prior; the rest, 1 - lb, is that of the mean of W over heads and entries, equal for words.

    Defaults: l = 1, 10, 20 of 32 layers, where the paper finds attention to shift on LLaVA-1.5-7B; without `keep` and
    `keeps`, 290, 72, 18 of 576 tokens (the paper's 128; `keeps=(133, 27, 3)`, `(80, 24, 2)`, `(40, 12, 0)` are its 64,
    48, 32, which count each layer l as pruned already). lb = 1. An entry of 0 in `keeps` drops all visual tokens.

    Source: Zhang et al., "AdaptInfer: Adaptive Token Pruning for Vision-Language Model Inference with Dynamical Text
    Guidance", arXiv 2508.06084.

    Differs from the released code: shares are of the unit as the language model got it, where its ratios for Qwen2-VL
    are of what is left; `keep` of what is there or more drops nothing, where it drops one; sums are float32. The paper
    calls the prior soft; as in the code it is no softmax and no mean, so heads weigh by what text does in them.
    """

    published: ClassVar = (290 / 576, 72 / 576, 18 / 576)
    positions: ClassVar = "compact"
    rows: ClassVar = "text"
    offset: ClassVar = 1
    reads: ClassVar = "attention of all words"
    cost: ClassVar = "per event 2 H T L d multiply-adds for T words; a block of attention rows and H L floats"
    when: ClassVar = "Tight budgets with questions of several words; the schedule can be fitted to a model."
    limits: ClassVar = (
        "Words of the template count like any other; late words have few behind them that attend to them."
    )

    layers: tuple[int | float, ...] = (1 / 32, 10 / 32, 20 / 32)
    rounding: Rounding = "floor"
    lb: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.lb, bool) or not isinstance(self.lb, (int, float)) or not 0 <= self.lb <= 1:
            raise InvalidArgumentError(f"lb={self.lb!r} is not in [0, 1]: it is the weight of the prior.")

    @classmethod
    def from_schedule(cls, path: str | Path, **fields) -> AdaptInfer:
        """With the layers and keeps of a JSON file {"layers": [...], "keeps": [...]}; other fields as in the class.

        Raises:
            InvalidArgumentError: no such file, or none of this form.
        """
        try:
            schedule = json.loads(Path(path).read_text())
            layers, keeps = (tuple(schedule[name]) for name in ("layers", "keeps"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"path={str(path)!r} holds no schedule ({type(error).__name__}: {error}): give a JSON file with lists "
                '"layers" and "keeps".'
            ) from error
        return cls(layers=layers, keeps=keeps, **fields)

    def score(self, attention: Attention, event: Event) -> Tensor:
        """In two passes over the rows: what a word gets is known only when all words behind it have been seen."""
        text, rows = attention.text[:, None, None], attention.rows.masked_fill(~attention.row_mask, 0)
        gives, gets = [], 0.0
        for some, block in attention.blocks():
            own = rows[:, None, some, None].expand(-1, attention.heads, -1, -1)
            gives.append((block * text).sum(-1) - block.gather(3, own)[..., 0])
            gets = gets + block.sum(2)
        gets = gets.gather(2, rows[:, None].expand(-1, attention.heads, -1))
        prior = (torch.cat(gives, 2) + gets) * attention.row_mask[:, None]
        mean = prior.sum((1, 2)) / (attention.count()[:, 0] * attention.heads)
        weights = self.lb * prior + (1.0 - self.lb) * mean[:, None, None]
        return attention.total(weights)

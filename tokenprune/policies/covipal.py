"""CoViPAL."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from ..errors import InvalidArgumentError
from ..ops import top_k
from ..predictors import PruningModule
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import Need, ProjectorPolicy


@register("covipal")
@dataclass(kw_only=True)
class CoViPAL(ProjectorPolicy):
    """The k tokens that a small trained module scores highest, which reads all visual tokens and the instruction.

    u = PPM([H_v; H_t]), one score for every visual token from the visual tokens H_v [N, D] and the text H_t [M, D] as
    the language model would read them. Of u + d sqrt(k / N) logit(t), where t is an ordered dither over the grid, the k
    largest stay, the lowest index on ties.

    Attributes:
        predictor: folder or hub id of a module that `tokenprune train covipal` made for this model, or the module.

    Source: Tang et al., "CoViPAL: Layer-wise Contextualized Visual Token Pruning for Large Vision-Language Models",
    Findings of EMNLP 2025, arXiv 2508.17243, of which no code can be had. CoViPAL-style: known are that a small
    classifier of visual and textual states prunes before the language model, that it is trained first on attention,
    then end to end with the log of soft retention added to the attention to visual keys, and that the model stays
    frozen. Designed here: the module's shape, the dither, and that it learns from the gradient of the answer's loss
    with respect to gates on visual keys, where attention is an option (`tokenprune.learn.Recipe`).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features", "text"})
    cost: ClassVar = "2 blocks of width h over N + M tokens: about 24 h^2 (N + M) + 4 h (N + M)^2 multiply-adds"
    when: ClassVar = "Made for few tokens (5 % and below), and pictures and questions like those it was trained on."
    limits: ClassVar = "Needs training for every model; elsewhere than on its training's kind it may lose to others."

    predictor: str | Path | PruningModule | None = None
    _module: PruningModule | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.predictor, (str, Path)):
            self._module = PruningModule.from_pretrained(self.predictor)
        elif isinstance(self.predictor, PruningModule):
            self._module = self.predictor
        elif self.predictor is not None:
            raise InvalidArgumentError(
                f"predictor={self.predictor!r} is no folder, hub id or PruningModule: give what `tokenprune train "
                "covipal` wrote."
            )

    @property
    def trained(self) -> PruningModule:
        """The module.

        Raises:
            InvalidArgumentError: none was given.
        """
        if self._module is None:
            raise InvalidArgumentError(
                "predictor=None leaves 'covipal' without its trained module: give predictor=FOLDER, which `tokenprune "
                "train covipal` writes."
            )
        return self._module

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Selection:
        module = self.trained.to(tokens.features.device)
        scores = module(tokens.features, tokens.text, tokens.text_mask, tokens.grid)
        scores = module.spread(scores, k, tokens.grid)
        return Selection.subset(top_k(scores, k), scores=scores)

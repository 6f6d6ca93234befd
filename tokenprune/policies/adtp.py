"""AD-TP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..predictors import SaliencyPredictor
from ..registry import register
from .encoder import EncoderPolicy, TextTokens


@register("adtp")
@dataclass(kw_only=True)
class ADTP(EncoderPolicy):
    """Tokens of a text that a small trained module finds most salient, and as many as another one finds enough.

    u = TSP(x), one score for every token from its input embedding x [n, D]; rho = the candidate of the largest logit of
    ARP(x). ceil(rho n) tokens of the largest u enter the first block, [CLS] and [SEP] among them; their places are in
    x already. All blocks run on these alone.

    Attributes:
        predictor: folder or hub id of what `tokenprune train adtp` made for this model, or the `SaliencyPredictor`.
        ratio: rho in (0, 1] for all texts; None: ARP chooses for each.

    Source: AD-TP, NeurIPS 2025, of which neither a preprint nor code can be had. AD-TP-style: pruning at the input
    alone, a predictor of token saliency trained on integrated gradients of a teacher, one of the retention ratio with
    ten candidates, distillation and a retainer loss are the paper's. Designed here: the shapes of both predictors (see
    `SaliencyPredictor`), that the encoder stays frozen, where the paper fine-tunes a student, and all weights of losses
    (see `tokenprune.learn.adtp.SaliencyRecipe`).
    """

    cost: ClassVar = "D h multiply-adds per token and 2 D h per text, with h of 128"
    when: ClassVar = "For sentence embeddings and classification of long texts with BERT-type encoders."
    limits: ClassVar = "Not where every token needs an answer (question answering, tagging). Needs training per model."
    adaptive: ClassVar[bool] = True

    predictor: str | Path | SaliencyPredictor | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.predictor is not None and not isinstance(self.predictor, (str, Path, SaliencyPredictor)):
            raise InvalidArgumentError(
                f"predictor={self.predictor!r} is no folder, hub id or SaliencyPredictor: give what `tokenprune train "
                "adtp` wrote."
            )

    @cached_property
    def trained(self) -> SaliencyPredictor:
        if self.predictor is None:
            raise InvalidArgumentError(
                "predictor=None leaves 'adtp' without its trained module: give predictor=FOLDER, which `tokenprune "
                "train adtp` writes."
            )
        if isinstance(self.predictor, SaliencyPredictor):
            return self.predictor
        return SaliencyPredictor.from_pretrained(self.predictor)

    @torch.no_grad()
    def score(self, tokens: TextTokens) -> Tensor:
        return self.trained.to(tokens.real.device)(tokens.embeddings, tokens.real)

    @torch.no_grad()
    def shares(self, tokens: TextTokens, scores: Tensor) -> Tensor:
        if self.ratio is not None:
            return super().shares(tokens, scores)
        chosen = self.trained.choose(tokens.embeddings, tokens.real, scores).argmax(1)
        return torch.tensor(self.trained.ratios, dtype=torch.double, device=scores.device)[chosen]

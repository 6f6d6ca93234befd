"""FTP, token-wise routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, nearest
from ..predictors import TokenRouter
from ..registry import register
from .skipping import SkipPolicy, SkipTokens

Router = Literal["learned", "static", "random"]


@register("ftp")
@dataclass(kw_only=True)
class FTP(SkipPolicy):
    """In block i, round(s_i n) of a prompt's n tokens are skipped: those to which a router gives the lowest priority.

    learned: logit(keep) - logit(skip) of an MLP over place, latest attention, its rank, and s_i (`TokenRouter`);
    static: the first token, then from the last to the second, x_0, x_(n-1), x_(n-2), ..., x_1;
    random: the same tokens for the same n, block and seed, others in every block.
    The first token and the last are always computed, so that every row has a key and the next word is predicted in full
    depth. What is computed attends to what is computed, with its position in the prompt. Only tokens of a prompt that
    is read at once skip; what is read later, on its cache, is never skipped and has no part in the choice.

    Attributes:
        predictor: folder or hub id of a router that `tokenprune.learn.train_ftp` made for this model, or the router.
            "static" and "random" use its schedules alone, and skip the same share of every block without it.
        sparsity: mean of s_i over blocks, in [0, 1): the share of pairs (token, block) that are skipped.
        schedule: s_i of every block; `sparsity` says nothing then.
        router: which.
        seed: of "random".

    Source: Li et al., "FTP: A Fine-grained Token-wise Pruner for Large Language Models via Token Routing", arXiv
    2412.11494, of which no code can be had. FTP-style: the router's four factors and sizes, the static priority, the
    schedule by genetic search under a mean, and the frozen model are the paper's. Designed here: the number skipped is
    exact, where the paper takes the argmax of two logits; the attention a token got is that of the last 16 tokens a
    block computed; at every decode step all blocks run, where the paper skips by a threshold.
    """

    cost: ClassVar = "per block, 16 rows of attention (16 n H d multiply-adds) and 384 n of the router"
    when: ClassVar = "For long prompts of any tokens, visual or text, at up to about a fifth of the pairs skipped."
    reads: ClassVar[str] = "places, and the attention of the last 16 tokens"
    limits: ClassVar = "No token leaves: decode steps stay as deep, and caches shrink by the share skipped only."

    predictor: str | Path | TokenRouter | None = None
    sparsity: float = 0.2
    schedule: Sequence[float] | None = None
    router: Router = "learned"
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.router not in get_args(Router):
            raise InvalidArgumentError(
                f"router={self.router!r} is not one of {', '.join(get_args(Router))}"
                f"{nearest(self.router, get_args(Router))}."
            )
        if not (type(self.sparsity) in (int, float) and 0 <= self.sparsity < 1):
            raise InvalidArgumentError(f"sparsity={self.sparsity!r} is not in [0, 1): give a mean share to skip.")
        if self.schedule is not None and not (
            isinstance(self.schedule, (list, tuple))
            and all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in self.schedule)
        ):
            raise InvalidArgumentError(
                f"schedule={self.schedule!r} is no list of shares from 0 to 1: give one for each block."
            )
        if self.predictor is not None and not isinstance(self.predictor, (str, Path, TokenRouter)):
            raise InvalidArgumentError(
                f"predictor={self.predictor!r} is no folder, hub id or TokenRouter: give what train_ftp wrote."
            )

    @cached_property
    def trained(self) -> TokenRouter | None:
        if self.predictor is None and self.router == "learned":
            raise InvalidArgumentError(
                "predictor=None leaves 'ftp' without its trained router: give predictor=FOLDER, which "
                "tokenprune.learn.train_ftp writes, or router='static'."
            )
        if self.predictor is None or isinstance(self.predictor, TokenRouter):
            return self.predictor
        return TokenRouter.from_pretrained(self.predictor)

    @property
    def rows(self) -> int:
        return self.trained.rows if self.router == "learned" else 0

    def shares(self, depth: int) -> Sequence[float]:
        found = self.schedule
        if found is None and self.trained is not None:
            found = self.trained.schedule_at(self.sparsity)
        return [self.sparsity] * depth if found is None else found

    @torch.no_grad()
    def priority(self, tokens: SkipTokens) -> Tensor:
        if self.router == "static":
            return tokens.place.float()
        if self.router == "random":
            generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + tokens.block * 0x85EBCA77) % 2**32)
            drawn = torch.rand(tokens.place.shape[1], generator=generator).to(tokens.place.device)
            return drawn[tokens.place.clamp_min(0)]
        router = self.trained.to(tokens.scores.device)
        skip, keep = router(tokens.place, tokens.real, tokens.scores, tokens.sparsity).unbind(-1)
        return keep - skip

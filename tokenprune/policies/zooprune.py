"""ZOO-Prune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from ..errors import InvalidArgumentError, nearest
from ..ops import greedy_max_min, min_max
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import FeaturePolicy, Need
from .quality import FeatureNorm
from .sensitivity import Sensitivity

Estimator = Literal["zeroth_order", "closed_form", "norm"]


@register("zooprune")
@dataclass(kw_only=True)
class ZooPrune(FeaturePolicy):
    """Sensitive and diverse tokens: max-min diversity, weighted by how strongly the projector answers at each token.

    With x_i [P, d_v] the vision features of token i, P(x) the projector, Z = P(x) [N, D]:
    S_i = mean over j of |P(x_i + h u_j) - P(x_i - h u_j)| / (2 h), u_j [d_v] random unit vectors, the same for all;
    w_i = (S_i - min S) / (max S - min S + 1e-8) per unit, 1 where all S are equal; D_ij = 1 - cos(Z_i, Z_j).
    The first pick is argmax w; every further pick is argmax_i w_i min_{j chosen} D_ij. The least sensitive token of a
    unit has w = 0 and comes last. Looks at no text.

    Attributes:
        estimator: of S. "zeroth_order": as above, as published. "closed_form": (|J|_F^2 / d_v)^(1/2), the root of the
            expected square of the same derivative, without directions: the default, since it costs a fraction and
            chooses as well (`python -m tokenprune.eval.sensitivity`); for projectors that are a normalisation or none
            and a two-layer perceptron. "norm": |Z_i| instead, the control that a gain by sensitivity has to beat.
        m: directions u of "zeroth_order".
        h: its step; 1e-4 to 1 give much the same in float32.
        seed: of the directions.

    Defaults for all models: m = 64, h = 0.01. The code counts with `rounding="floor"` (0.1112 of 576 is 64) and prunes
    each crop of tiled models by itself: `per="crop"`.

    Source: Kim et al., "Training-Free Token Pruning via Zeroth-Order Gradient Estimation in Vision-Language Models",
    CVPR 2026, arXiv 2509.24837.

    Differs from the released code: the closed form (theirs is "zeroth_order"); float32 (with |u| = 1 the step moves a
    coordinate by h / sqrt(d_v), less than half precision resolves: in float16 S comes out nearly twice too large, in
    bfloat16 it is mostly rounding); seeded directions (the code draws new ones for every image); the whole projector
    (for LLaVA-NeXT the code takes a rank-128 one); newline tokens are no candidates and stay (the code means to keep
    them, but keeps others by a wrong offset). Mergers of P patches, not in the code: the same u on each patch.
    """

    estimator: Estimator = "closed_form"
    m: int = 64
    h: float = 0.01
    seed: int = 0
    cost: ClassVar = (
        "zeroth_order: 2 m projections per token, 64 MiB blocks; closed_form: d_h^2 multiply-adds per token and d_h^2 "
        "floats per model, P (P + 1) / 2 times that with a normalisation per patch (beyond 256 MiB they are made anew "
        "every time); a float32 copy of the projector; then N k D multiply-adds, k sequential steps"
    )
    when: ClassVar = "Without any text: images where diversity alone spends the budget on background."
    limits: ClassVar = (
        "One outlier in S makes all other weights small. Behind a normalisation S is nearly the inverse of how large a "
        "token's vision features are. At m = 64 the estimate can cost more than the tokens removed save."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.estimator not in get_args(Estimator):
            raise InvalidArgumentError(
                f"estimator={self.estimator!r} is not one of {', '.join(get_args(Estimator))}"
                f"{nearest(self.estimator, get_args(Estimator))}."
            )
        self.quality()  # checks the rest

    def quality(self) -> Callable[[VisualTokens], Tensor]:
        """Maps `VisualTokens` to S [G, N]."""
        if self.estimator == "norm":
            return FeatureNorm()
        return Sensitivity(estimator=self.estimator, m=self.m, h=self.h, seed=self.seed)

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | self.quality().needs

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        w = min_max(self.quality()(tokens), denominator_eps=1e-8)
        return Selection.subset(greedy_max_min(self.compared(tokens), k, quality=w), scores=w)

"""What every policy is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from ..budget import Budget, Quota, Rounding, Unit, Whole
from ..errors import InvalidArgumentError, nearest
from ..tokens import Selection, Tap, VisualTokens

Need = Literal["features", "encoder", "projection", "text", "instruction"] | Tap
Source = Literal["projector", "pre_merger"]


@dataclass(kw_only=True)
class Policy:
    """Decides which visual tokens survive. Subclasses are dataclasses; their fields are the paper's hyper-parameters.

    Attributes:
        keep: budget, an int (tokens) or a float in (0, 1] (share); may be left to `wrap(..., keep=...)`.
        per: unit the budget is counted over.
        rounding: how a share becomes a count.
        of: None, or the larger unit that `keep` is meant of, and split over its units: see `Budget`.
        quota: how it is split: "proportional" to the units' sizes or "equal".
    """

    name: ClassVar[str] = ""
    stage: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    # Lines for `tokenprune show`
    cost: ClassVar[str] = ""  # operations and memory per unit
    when: ClassVar[str] = ""  # to be used
    limits: ClassVar[str] = ""
    positions: ClassVar[str] = "original"  # of the tokens left, where `wrap` is not told otherwise
    kinds: ClassVar[frozenset[str]] = frozenset({"image", "video"})  # what it is asked about; others stay whole

    keep: int | float | None = None
    per: Unit = "image"
    rounding: Rounding = "half_even"
    of: Whole | None = None
    quota: Quota = "proportional"

    def __post_init__(self):
        Budget(1.0 if self.keep is None else self.keep, self.per, self.rounding, self.of, self.quota)

    @property
    def budget(self) -> Budget:
        return Budget(self.keep, self.per, self.rounding, self.of, self.quota)


@dataclass(kw_only=True)
class ProjectorPolicy(Policy):
    """Works on projected tokens, after the projector and before the language model."""

    stage: ClassVar[str] = "projector"
    parts: ClassVar[tuple[str, ...]] = ()  # fields that hold functions of `VisualTokens`, whose needs are the policy's

    def __post_init__(self):
        super().__post_init__()
        for name in self.parts:
            if not callable(part := getattr(self, name)):
                raise InvalidArgumentError(
                    f"{name}={part!r} is no function of VisualTokens: give TextRelevance(), ClipRelevance(...), "
                    "VisionAttention(), FeatureNorm() or your own."
                )

    @property
    def needs(self) -> frozenset[Need]:
        given = (getattr(getattr(self, name), "needs", frozenset()) for name in self.parts)
        return frozenset({"features"}).union(*given)

    @property
    def exact(self) -> bool:
        """Whether every answer has exactly k tokens. Where not (`strict_paper`), units are asked one at a time."""
        return True

    def rate(self, tokens: VisualTokens) -> Tensor | None:
        """[G, N] scores that `select` compares over all units of an image, whatever their size; None without any.

        The runtime asks it of all units first, and shows `select` the answer as `VisualTokens.rating`.
        """
        return None

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        """Choose or merge down to k of the N tokens of each unit. The runtime calls it with 1 <= k < N only."""
        raise NotImplementedError


@dataclass(kw_only=True)
class FeaturePolicy(ProjectorPolicy):
    """A projector policy that compares the features of tokens.

    Attributes:
        features: which features. "projector": the tokens as the language model reads them. "pre_merger": the tower
            features that entered the projector or patch merger, those of one token side by side, [N, P d_v]: where a
            merger joins P patches, this is its input. On models whose projector makes one row of one, P is 1.
    """

    features: Source = "projector"

    def __post_init__(self):
        super().__post_init__()
        if self.features not in get_args(Source):
            raise InvalidArgumentError(
                f"features={self.features!r} is not one of {', '.join(get_args(Source))}"
                f"{nearest(self.features, get_args(Source))}."
            )

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | ({"encoder"} if self.features == "pre_merger" else set())

    def compared(self, tokens: VisualTokens) -> Tensor:
        """[G, N, D] features to compare tokens by."""
        return tokens.features if self.features == "projector" else tokens.encoder.flatten(2)

"""Tokens that go, put together to a few means that stay."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidArgumentError
from ..layers import LayerTokens
from ..ops import average_by_source, recycled_map, top_k
from ..tokens import Selection
from .schedule import ScheduledPolicy


@dataclass(kw_only=True)
class RecyclingPolicy(ScheduledPolicy):
    """Keeps tokens and recycles the best of the n_p others: m = int(tau n_p) + 1 in C = int(theta m) + 1 clusters."""

    tau: float = 0.3
    theta: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        for name in ("tau", "theta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise InvalidArgumentError(f"{name}={value!r} is not in [0, 1]: give a share.")

    def recycled(self, others: int) -> tuple[int, int]:
        """m and C of that many tokens that are not kept; none with tau = 0."""
        if self.tau == 0 or others == 0:
            return 0, 0
        m = min(others, int(self.tau * others) + 1)
        return m, min(m, int(self.theta * m) + 1)

    def kept_of(self, n: int, k: int) -> int:
        """How many of k tokens are kept ones, the others clusters: as many as leave room for these, and at least half.

        One token kept less is one other more, and at most one cluster more, so some count meets k exactly.
        """
        return next(a for a in range(k, -1, -1) if a + min(self.recycled(n - a)[1], k // 2) <= k)

    def recycle(self, tokens: LayerTokens, kept: int, clusters: int) -> Selection:
        """The `kept` tokens that rank highest and that many clusters of the best of the others, by their raw scores.

        Where the tokens left are renumbered, the clusters stand behind the kept ones, as if appended; otherwise each at
        its centre.
        """
        order, n = top_k(tokens.ranking, kept), tokens.shape[1]
        if clusters == 0:
            return Selection.subset(order, scores=tokens.ranking)
        members, _ = self.recycled(n - kept)
        indices, source = recycled_map(
            tokens.hidden, tokens.scores, order.sort(-1).values, members, clusters, last=tokens.compact
        )
        features, sizes = average_by_source(tokens.hidden, source, kept + clusters)
        return Selection(indices=indices, scores=tokens.ranking, features=features, source=source, sizes=sizes)

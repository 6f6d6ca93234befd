"""What policies share that merge tower features in front of the projector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import gather_rows, sizes_by_source, summary_map
from ..tokens import Selection, VisualTokens
from .base import Need, ProjectorPolicy


def with_merged(
    tokens: VisualTokens, indices: Tensor, places: Tensor, merged: Tensor, alone: Tensor | None = None
) -> Tensor:
    """[G, k, D]: the tokens at `indices`, some of them replaced by the projection of merged tower features.

    Args:
        indices: [G, k] long.
        places: [G, c] long, which of `indices` are replaced.
        merged: [G, c, P, d_v], merged patch by patch.
        alone: [G, c] bool, True where nothing was merged after all: that row stays as it is.
    """
    rows = gather_rows(tokens.features, indices)
    if merged.shape[1] == 0:
        return rows
    new = tokens.projection.apply(merged.to(tokens.encoder.dtype)).to(rows.dtype)
    if alone is not None:
        new = torch.where(alone[..., None], gather_rows(rows, places), new)
    g, k, _ = rows.shape  # rows of one long list: three times as fast on a CPU as an index for every number
    flat = places + torch.arange(0, g * k, k, device=places.device)[:, None]
    return rows.flatten(0, 1).index_copy(0, flat.flatten(), new.flatten(0, 1)).view_as(rows)


@dataclass(kw_only=True)
class SummaryPolicy(ProjectorPolicy):
    """Keeps tokens and makes one more of all others. The paper's count is adaptive, with `strict_paper`."""

    strict_paper: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | {"encoder", "projection"}

    @property
    def exact(self) -> bool:
        return not self.strict_paper

    def summarised(
        self, tokens: VisualTokens, kept: Tensor, share: Tensor, scores: Tensor, centres: Tensor | None = None
    ) -> Selection:
        """The kept tokens and, at the last place that is not kept, a weighted sum of the tower features of all others.

        Args:
            kept: [G, c] long, in the order they were chosen, c < N.
            share: [G, N], weights of the sum (those of kept tokens are not read).
            centres: [G, c, P d_v], what the tower features of the kept tokens become; None leaves them as they are.
                Whatever else the decoder reads of a kept token stays its own.
        """
        n, shape = share.shape[1], tokens.encoder.shape[2:]
        indices, place, source = summary_map(kept, n)
        order = torch.cat([kept, indices.gather(1, place)], 1)
        merged = torch.einsum("gn,gnpd->gpd", share.scatter(1, kept, 0.0), tokens.encoder.float())[:, None]
        if centres is not None:
            merged = torch.cat([centres.unflatten(2, shape), merged], 1)
            place = torch.searchsorted(indices, order)
        return Selection(
            indices=indices,
            order=order,
            scores=scores,
            features=with_merged(tokens, indices, place, merged),
            source=source,
            sizes=sizes_by_source(source, indices.shape[1]),
            weights=share.scatter(1, kept, 1.0),
        )

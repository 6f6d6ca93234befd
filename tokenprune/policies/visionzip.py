"""VisionZip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidArgumentError
from ..ops import gather_rows, nearest_target, remaining, sizes_by_source, sum_by_source, top_k, unit_norm
from ..registry import register
from ..tokens import Selection, Tap, VisualTokens
from .attention import AttentionPolicy
from .merging import with_merged

CLASS_TOKEN = Tap("class_token")


@register("visionzip")
@dataclass(kw_only=True)
class VisionZip(AttentionPolicy):
    """The most attended tokens, and a few that the others are merged into, in front of the projector. No text.

    With c contextual tokens of k: the k - c tokens with the largest attention a [N] stay as they are (dominant). Of the
    n others, ascending, the places 0, s, 2s, ... (c of them, s = n // c) are targets. Every other token goes to the
    target whose key, mean over heads, has the largest cosine with its own. A target becomes
    F_t + mean of the F_i that went to it, F [N, P, d_v] the tower's features, patch by patch, then projected.

    Attributes:
        contextual: c; None is round(k / 6.4), the paper's share: 30 of 192, 20 of 128, 10 of 64, 5 of 32. At most
            k - 1 of them are made.
        attention: maps `VisualTokens` to a [G, N]; the keys are those of its `layer`.
        strict_paper: what the released code feeds: the tower's class token is one of the dominant tokens, and the order
            is class token, dominant tokens, contextual tokens. These k vectors are put in this order into the k
            ascending places that the default would keep, so a place then says nothing about what stands there.

    Source: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
    arXiv 2412.04467.

    Differs from the released code unless `strict_paper`: no class token (the paper speaks of patches, and the projector
    was never trained on it), so one patch more; every token stands at the place of its target, in raster order.
    """

    contextual: int | None = None
    strict_paper: bool = False
    cost: ClassVar = "one row of attention, N c d_head multiply-adds; N (d_v + d_head) floats"
    when: ClassVar = "Towers with a class token; keeps a trace of the background where `fastervlm` drops it."
    limits: ClassVar = "Blind to the question; a contextual token is a sum, of up to twice the usual norm."

    def __post_init__(self):
        super().__post_init__()
        if self.contextual is not None and (type(self.contextual) is not int or self.contextual < 0):
            raise InvalidArgumentError(
                f"contextual={self.contextual!r} is not a count: give an int, or None for round(k / 6.4)."
            )

    @property
    def keys(self) -> Tap:
        return Tap("keys", layer=getattr(self.attention, "layer", None))

    @property
    def needs(self) -> frozenset:
        class_token = {CLASS_TOKEN} if self.strict_paper else set()
        return super().needs | {"features", "encoder", "projection", self.keys} | class_token

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        a = self.attention(tokens).float()
        c = min(round(k / 6.4) if self.contextual is None else self.contextual, k - 1)
        if c == 0 and not self.strict_paper:
            return Selection.subset(top_k(a, k), scores=a)
        survivors, carrier = self._assign(tokens, top_k(a, k - c).sort(-1).values, c)
        indices = survivors.sort(-1).values
        if self.strict_paper:  # the class token takes the turn of the last dominant patch
            survivors, carrier = self._assign(tokens, top_k(a, k - c - 1).sort(-1).values, c)
        count = survivors.shape[1]
        dominant, sizes = count - c, sizes_by_source(carrier, count + 1)
        weights = (1.0 / (sizes - 1.0).clamp_min(1.0)).gather(1, carrier).scatter(1, survivors, 1.0)
        merged = sum_by_source(tokens.encoder.flatten(2), carrier - dominant, c + 1, weights)[:, :c]
        merged = merged.unflatten(2, tokens.encoder.shape[2:])
        contextual = torch.arange(dominant, count, device=a.device).expand(len(a), c)
        alone = sizes[:, dominant:count] == 1
        features = with_merged(tokens, survivors, contextual, merged, alone=alone)
        if self.strict_paper:
            first = tokens.projection.apply(tokens.tower[CLASS_TOKEN][:, :1].to(tokens.encoder.dtype))
            features = torch.cat([first.to(features.dtype), features], 1)
            place = torch.arange(1, k, device=a.device).expand(len(a), count)
        else:
            features = gather_rows(features, survivors.argsort(-1))
            place = torch.searchsorted(indices, survivors)
        source = F.pad(place, (0, 1), value=-1).gather(1, carrier)
        sizes = sizes_by_source(source, k).clamp_min(1.0)  # a class token counts as one
        return Selection(indices=indices, scores=a, features=features, source=source, sizes=sizes, weights=weights)

    def _assign(self, tokens: VisualTokens, dominant: Tensor, c: int) -> tuple[Tensor, Tensor]:
        """[G, count] the dominant tokens and c targets; [G, N] which of them carries a token, `count` for none."""
        (g, n), d = tokens.shape, dominant.shape[1]
        rest = remaining(dominant, n)
        carrier = torch.full((g, n), d + c, device=rest.device)
        survivors = dominant
        if c > 0:
            targets = rest[:, :: rest.shape[1] // c][:, :c]
            key = unit_norm(tokens.tower[self.keys].float().mean(2))
            carrier.scatter_(1, rest, d + nearest_target(gather_rows(key, rest), gather_rows(key, targets))[1])
            survivors = torch.cat([dominant, targets], 1)
        own = torch.arange(survivors.shape[1], device=rest.device).expand_as(survivors)
        return survivors, carrier.scatter_(1, survivors, own)

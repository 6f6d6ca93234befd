"""The plug-in pruning module of CoViPAL: reads visual tokens and the text, and scores every visual token."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PredictorError
from ..ops import ordered_dither, sent
from .base import Predictor

WAVES = 8  # frequencies of a coordinate


class PruningModule(Predictor):
    """A few pre-norm transformer blocks without a causal mask over [visual tokens; text], and a linear head.

    Each side has a layer norm and a projection of its own from D to `hidden`. A visual token gets the waves of its
    place in the picture, in [0, 1] along each axis, so pictures of any size fit; a word those of its distance from the
    end.

    Args:
        width: D, of the language model's input embeddings.
        hidden, layers, heads: of the module; its feed-forward layers have 4 `hidden`.
        dither: of scores, see `spread`.
        base: see `Predictor`.
    """

    kind: ClassVar[str] = "covipal"

    def __init__(
        self,
        *,
        width: int,
        hidden: int = 512,
        layers: int = 2,
        heads: int = 8,
        dither: float = 3.2,
        base: dict[str, Any] | None = None,
    ):
        super().__init__(base=base)
        self.width, self.dither = width, dither
        self.seen, self.words = _projection(width, hidden), _projection(width, hidden)
        self.place, self.order = nn.Linear(6 * WAVES, hidden), nn.Linear(2 * WAVES, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, 1)

    def forward(
        self, features: Tensor, text: Tensor, text_mask: Tensor, grid: tuple[int, int, int] | None = None
    ) -> Tensor:
        """Scores [G, N] float32, a higher one is to stay.

        Args:
            features: [G, N, D] visual tokens; text: [G, M, D]; text_mask: [G, M] bool.
            grid: (frames, rows, columns) of the visual tokens; None: a row.

        Raises:
            PredictorError: D is not the width it was made for.
        """
        g, n, width = features.shape
        if width != self.width:
            raise PredictorError(f"features are of width {width}, and this module was trained for {self.width}.")
        weight = self.head.weight
        seen = self.seen(features.to(weight.dtype)) + self.place(_places(grid or (1, 1, n), weight))
        back = text_mask.long().flip(1).cumsum(1).flip(1)  # 1 at the last word
        words = self.words(text.to(weight.dtype)) + self.order(_waves(1 / back.clamp_min(1).to(weight)))
        x = torch.cat([seen, words], 1)
        there = torch.cat([text_mask.new_ones(g, n), text_mask], 1)[:, None, None]
        for block in self.blocks:
            x = block(x, there)
        return self.head(self.norm(x[:, :n])).squeeze(-1).float()

    def spread(
        self, u: Tensor, k: int | Tensor, grid: tuple[int, int, int] | None, flips: tuple[int, int, int] = (0, 0, 0)
    ) -> Tensor:
        """Scores [G, N] of which the k largest are to stay: u + dither sqrt(k / N) logit(t), t even over the grid.

        Where u is equal, those chosen lie evenly, and elsewhere the share of them that is has log odds (u - threshold)
        / (dither sqrt(k / N)): a token's neighbours, which score alike, are not taken all or none. The more tokens may
        stay, the more they are spread.

        Args:
            k: int, or [G, 1].
            flips: see `ordered_dither`.
        """
        thresholds = sent(ordered_dither(grid or (1, 1, u.shape[1]), flips), u.device)
        return u + self.dither * (k / u.shape[1]) ** 0.5 * thresholds.logit()


def _projection(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden))


class _Block(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attended, self.fed = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.joined, self.out = nn.Linear(hidden, 3 * hidden), _zero(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), _zero(4 * hidden, hidden)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        query, key, value = self.joined(self.attended(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=there)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.fed(x))))


def _zero(width: int, hidden: int) -> nn.Linear:
    """Last layer of a branch: starts at zero, so that a block starts as the identity."""
    layer = nn.Linear(width, hidden)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _waves(x: Tensor) -> Tensor:
    """[..., 2 WAVES] sines and cosines of [...] numbers in [0, 1]."""
    angle = x[..., None] * (math.pi * 2.0 ** torch.arange(WAVES, device=x.device, dtype=x.dtype) / 2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def _places(grid: tuple[int, int, int], like: Tensor) -> Tensor:
    """[N, 6 WAVES], the waves of frame, row and column."""
    axes = [(torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size for size in grid]
    return torch.cat([_waves(axis.flatten()) for axis in torch.meshgrid(*axes, indexing="ij")], -1)

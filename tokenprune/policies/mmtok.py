"""MMTok."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..ops import gather_rows, greedy_coverage, unit_norm
from ..ops.coverage import CACHED_ELEMENTS, at_once
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import ProjectorPolicy


@register("mmtok")
@dataclass(kw_only=True)
class MMTok(ProjectorPolicy):
    """Multimodal coverage: the tokens kept together stand for all words of the instruction and all of the image.

    X [N, D] tokens, V [N, P d_v] tower features (those of one token side by side), Y [M, D] the decoder's embeddings of
    the instruction. P = softmax over tokens i of cos(Y_a, X_i) / tv_temp, divided by M; Q = softmax over i of
    cos(V_b, V_i) / vv_temp, divided by N; F = [P; alpha Q], [M + N, N]. Greedy maximum of
    sum_r max_{i chosen} F_ri. Without text only Q counts.

    Attributes:
        alpha: weight of covering the image, against covering the text.
        tv_temp: temperature between text and image.
        vv_temp: temperature within the image.

    Defaults: the paper's, the same for LLaVA and Qwen2.5-VL.

    Source: Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", ICLR 2026,
    arXiv 2508.18264.

    Differs from the released code: all tokens of the instruction count, where the code drops about 50 stop words and
    two standard answer-format prompts (set `handle.instruction` to the bare question); patches that lie wholly in the
    padding border of a squared picture are candidates like others, where the code leaves them out on LLaVA-1.5.
    """

    alpha: float = 0.5
    tv_temp: float = 0.02
    vv_temp: float = 0.2
    needs: ClassVar = frozenset({"features", "encoder", "text"})
    cost: ClassVar = (
        "N^2 P d_v + k N (N + M) operations, k steps, lazy for large N; 64 MiB + N (D + 2 P d_v + M) floats"
    )
    when: ClassVar = "Questions about one thing among many: keeps what the words point to and a summary of the rest."
    limits: ClassVar = "Words such as 'the' pull tokens, too. Slow for many tokens: several N x N passes."

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.alpha, (int, float)) or not 0.0 <= self.alpha < float("inf"):
            raise InvalidArgumentError(f"alpha={self.alpha!r} is no weight: give a float of at least 0.")
        for name in ("tv_temp", "vv_temp"):
            if not isinstance(value := getattr(self, name), (int, float)) or not 0.0 < value < float("inf"):
                raise InvalidArgumentError(f"{name}={value!r} is no temperature: give a float above 0.")

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        (g, n), device = tokens.shape, tokens.features.device
        words = tokens.text_mask[..., None] / tokens.text_mask.sum(-1).clamp_min(1)[:, None, None]
        x = tokens.features.float()
        length = x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        p = (x @ unit_norm(tokens.text).mT).div_(length * self.tv_temp).softmax(1) * words.mT  # [G, N, M]
        m = p.shape[-1]
        v = unit_norm(tokens.encoder.flatten(2)).to(device)
        columns = (self._columns if at_once(g, n, m + n) else self._columns_as_asked)(p, v)
        ones = torch.ones(g, n, device=device)
        return Selection.subset(greedy_coverage(columns, ones, m + n, k))

    def _columns(self, p: Tensor, v: Tensor) -> Callable[[Tensor], Tensor]:
        """All columns of F, [G, N, M + N]."""
        (g, n, m), hot = p.shape, v / self.vv_temp
        f = v.new_empty(g, n, m + n)
        f[..., :m] = p
        q = f[..., m:]  # the transpose of Q, made in its place; the largest of a row is that of a token with itself
        q[:] = -(hot * v).sum(-1)[:, None]
        q.baddbmm_(v, hot.mT).exp_()
        q.mul_(self.alpha / n / q.sum(1, keepdim=True))
        return lambda index: f  # which is asked for once, as a whole

    def _columns_as_asked(self, p: Tensor, v: Tensor) -> Callable[[Tensor], Tensor]:
        """The same, made when they are asked for."""
        g, n, m = p.shape
        hot, block = v / self.vv_temp, max(1, CACHED_ELEMENTS // (g * n))
        top = (hot * v).sum(-1, keepdim=True)  # of every row, its cosine with itself
        parts = zip(hot.split(block, 1), top.split(block, 1), strict=True)
        sums = torch.cat([torch.baddbmm(-own, some, v.mT).exp_().sum(-1, keepdim=True) for some, own in parts], 1)
        # -log of what Q is divided by, times N / alpha
        scale = (math.log(self.alpha / n) if self.alpha else -math.inf) - (top + sums.log()).mT

        def columns(index: Tensor) -> Tensor:
            f = v.new_empty(g, index.shape[1], m + n)
            f[..., :m] = gather_rows(p, index)
            f[..., m:] = scale
            f[..., m:].baddbmm_(gather_rows(hot, index), v.mT).exp_()
            return f

        return columns

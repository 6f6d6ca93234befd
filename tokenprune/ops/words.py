"""Which words of a prompt are about the picture, and how much their attention says."""

from __future__ import annotations

import torch
from torch import Tensor

from .greedy import BLOCK_ELEMENTS


def pack(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of [B, L, D] that [B, L] bool `mask` marks, side by side: [B, T, D], their places and a mask, [B, T].

    T is the count of the prompt that has the most; reading it is one host synchronisation.
    """
    counts = mask.sum(1, keepdim=True)
    places = mask.byte().sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
    rows = x[torch.arange(x.shape[0], device=x.device)[:, None], places]
    return rows, places, torch.arange(places.shape[1], device=x.device) < counts


def word_relevance(visual: Tensor, visual_mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
    """[B, T] float32: mean over visual tokens v of softmax over words t of v . t; 0 where there is no word.

    Args:
        visual: [B, V, D]; visual_mask: [B, V] bool.
        text: [B, T, D]; text_mask: [B, T] bool.

    Cost: V T D multiply-adds; memory: blocks of at most 64 MiB of products.
    """
    words, total = text.float(), text.new_zeros(text.shape[:2], dtype=torch.float32)
    block = max(1, BLOCK_ELEMENTS // max(1, text.shape[0] * max(text.shape[1:])))
    for start in range(0, visual.shape[1], block):
        some = slice(start, start + block)
        products = (visual[:, some].float() @ words.mT).masked_fill(~text_mask[:, None], -torch.inf)
        total += (products.softmax(-1).nan_to_num(0.0) * visual_mask[:, some, None]).sum(1)
    return total / visual_mask.sum(1, keepdim=True).clamp_min(1)


def block_rank(block: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[B] long: the rank of [B, R, L] blocks that are zero outside of `rows` [B] x `columns` [B], in float32.

    Singular values count that exceed the largest by max(rows, columns) machine epsilons, whatever the zeros around.
    """
    tolerance = torch.maximum(rows, columns) * torch.finfo(torch.float32).eps
    return torch.linalg.matrix_rank(block.float(), rtol=tolerance)

"""DART and MMTok."""

import torch

from tokenprune.ops import gather_rows, least_similar_to_pivots, top_k, unit_norm
from tokenprune.policies import DART, MMTok
from tokenprune.tokens import VisualTokens

from .common import floats, same


def check_dart(z):
    """Pivots from the keys; then the rule in the order in which the code's set gave the pivots."""
    start, n = int(z["image_start"]), int(z["image_length"])
    keys = floats(z["keys"]).transpose(1, 2).flatten(2)
    norm, behind = keys.abs().sum(-1), start + n
    image_pivots = start + top_k(norm[:, start:behind], int(z["pivot_image"]))
    text_pivots = behind + top_k(norm[:, behind:], int(z["pivot_text"]))
    same(image_pivots[0], z["image_pivots"])
    same(text_pivots[0], z["text_pivots"])
    order = torch.from_numpy(z["pivot_iteration_order"])[None]
    x = unit_norm(floats(z["normed_hidden"]))
    taken = torch.zeros(1, n, dtype=torch.bool).scatter(1, image_pivots - start, True)
    each = int(z["per_pivot_topk"])  # dart_small has 2, not 12 // 4: n (1 - ratio) falls below 12 in binary
    counts = torch.full_like(order, each)
    place = least_similar_to_pivots(x[:, start:behind], gather_rows(x, order), counts, taken)
    kept = torch.cat([image_pivots[0] - start, (place[0] < n).nonzero()[:, 0]])
    same(start + kept.sort().values, z["retained_absolute_sorted"])
    policy = DART(pivot_image=int(z["pivot_image"]), pivot_text=int(z["pivot_text"]), strict_paper=True)
    selection = policy.by_norm(
        x[:, start:behind], norm[:, start:behind], x[:, behind:], norm[:, behind:], each * order.shape[1]
    )
    assert selection.indices.shape[1] == len(z["retained_absolute_sorted"])
    same(start + selection.order[0, : policy.pivot_image], z["image_pivots"])


def check_mmtok(z):
    keep, text = int(z["keep"]), floats(z["text_tokens"])[None]
    policy = MMTok(keep=keep, alpha=float(z["alpha"]), tv_temp=float(z["tv_temp"]), vv_temp=float(z["vv_temp"]))
    assert len(z["exclude"]) == 0
    tokens = VisualTokens(
        features=floats(z["vision_tokens"])[None],
        encoder=floats(z["vision_tokens_clip"])[None, :, None],
        text=text,
        text_mask=torch.ones(text.shape[:2], dtype=torch.bool),
    )
    selection = policy.select(tokens, keep)
    same(selection.indices[0], z["keep_indices_sorted"])
    same(selection.order[0], z["greedy_order_float64"])


FAMILIES = {"dart": check_dart, "mmtok": check_mmtok}

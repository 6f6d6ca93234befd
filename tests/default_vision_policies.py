"""Every policy inside the vision transformer once, configured, and what one may look at there."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from tokenprune.blocks import BlockTokens, Reduction
from tokenprune.ops import gather_rows, sum_by_source
from tokenprune.policies import STA, EViT, RandomBlocks, ToMe, VisionPolicy

# name -> factory; call it with keep=...
VISION_POLICIES = {
    "tome": ToMe,
    "tome-stride": partial(ToMe, stride=3),
    "evit": EViT,
    "evit-drop": partial(EViT, fuse=False),
    "sta": STA,
    "random-blocks": partial(RandomBlocks, seed=1),
    "random-blocks-evit": partial(RandomBlocks, blocks=(0.25, 0.5, 0.75)),
}
# Schedules without `keep`
SCHEDULES = {
    "tome": {"r": 2},
    "tome-stride": {"r": [9, 0, 4]},
    "evit": {"keep_rate": 0.7},
    "evit-drop": {"keep_rate": 0.7},
    "sta": {"r": 3},
    "random-blocks": {"r": (2, -1.0)},
    "random-blocks-evit": {"keep_rate": 0.7},
}
# Policies of towers without a class token
NO_PREFIX = ("sta",)
GRID = (4, 2, 5)
PATCHES = 40
DEPTH = 6


def prefix_of(name: str) -> int:
    return 0 if name in NO_PREFIX else 1


def block_tokens(hidden, *, prefix=0, **fields) -> BlockTokens:
    """Around [G, n, D] hidden states that have lost nothing yet."""
    g, n, _ = hidden.shape
    defaults = {"sizes": torch.ones(g, n), "places": torch.arange(n).expand(g, n), "grid": None, "total": n - prefix}
    return BlockTokens(hidden=hidden, prefix=prefix, **(defaults | {"block": 0, "depth": 12} | fields))


def image(tokens: BlockTokens, i: int) -> BlockTokens:
    """Image i alone."""
    names = ("hidden", "keys", "class_attention", "sizes", "places")
    parts = {name: value[i : i + 1] for name in names if (value := getattr(tokens, name)) is not None}
    return replace(tokens, **parts)


def steps(
    policy: VisionPolicy, hidden, keys, attention, *, prefix, grid=GRID, depth=DEPTH
) -> Iterator[tuple[BlockTokens, int, Reduction]]:
    """What the policy is shown, asked for and answers, block by block.

    Args:
        keys: [G, N, d], and attention: [G, N], of the tokens where they stood in the input; the same in every block.
    """
    total = hidden.shape[1] - prefix
    tokens = block_tokens(hidden, prefix=prefix, grid=grid, depth=depth)
    for block, k in enumerate(policy.counts(depth, total, grid)):
        if k == tokens.shape[1] - prefix:
            continue
        shown = {"keys": gather_rows(keys, tokens.places), "class_attention": attention.gather(1, tokens.places)}
        read = {name: value for name, value in shown.items() if name in policy.reads}
        tokens = replace(tokens, keys=None, class_attention=None, block=block)
        tokens = replace(tokens, **read)
        reduction = policy.reduce(tokens, k)
        yield tokens, k, reduction
        order, source = reduction.order, reduction.source
        hidden, sizes = gather_rows(tokens.hidden, order), tokens.sizes.gather(1, order)
        if source is not None:
            weights = tokens.sizes if reduction.weights is None else reduction.weights
            hidden = sum_by_source(tokens.hidden, source, order.shape[1], weights).to(hidden.dtype)
            sizes = sum_by_source(tokens.sizes[..., None], source, order.shape[1])[..., 0]
        tokens = replace(tokens, hidden=hidden, sizes=sizes, places=tokens.places.gather(1, order))

"""Which blocks FTP's tokens skip: genetic search over the shares of every block under a fixed mean."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidArgumentError
from ..policies.ftp import FTP
from ..stages.skip_parts import find_skip_parts
from ..wrap import wrap
from .ftp import windows
from .losses import distillation

HALVINGS = 50


@dataclass(frozen=True, kw_only=True)
class Search:
    """How schedules are searched.

    The first ones skip all blocks alike; most where a block's output is most like its input; and around both. Of every
    generation the better half stays, and as many are made of two of them each: their mean, with shares moved between
    blocks.

    Attributes:
        texts: whose words are to be predicted as by the dense model; prompt, answer: tokens of each.
        whole: blocks that no token skips, the first ones: what a token has become behind them, and the attention it
            got there, is all that the blocks behind can choose by.
        most: share of the tokens that a block lets skip at most.
    """

    population: int = 8
    generations: int = 5
    texts: int = 4
    prompt: int = 80
    answer: int = 32
    whole: int = 0
    most: float = 0.9
    seed: int = 0

    def __post_init__(self):
        if self.population < 4 or self.generations < 0 or self.texts < 1:
            raise InvalidArgumentError(
                f"population={self.population}, generations={self.generations}, texts={self.texts}: give at least 4, 0 "
                "and 1."
            )


def search_schedules(
    model: Any, tokenizer: Any, texts: Sequence[str], sparsities: Sequence[float], *, search: Search | None = None
) -> tuple[list[list[float]], dict[str, Any]]:
    """A schedule for every mean: s_i of every block, with the static router.

    What is minimised is KL(dense || pruned) of the words behind prompts that skipped. The same for the same seed.

    Returns:
        The schedules, and for JSON what each of them came to, and all blocks behind the first ones alike.

    Raises:
        InvalidArgumentError: a mean that the blocks behind the first `search.whole` cannot come to.
    """
    search = search or Search()
    depth = len(find_skip_parts(model).decoder.layers)
    if not 0 <= search.whole < depth:
        raise InvalidArgumentError(f"whole={search.whole} is not in [0, {depth}), the model's blocks: give fewer.")
    left, none = depth - search.whole, [0.0] * search.whole
    for one in sparsities:
        if not 0 < one < search.most * left / depth:
            raise InvalidArgumentError(f"sparsities has {one!r}: give means in (0, {search.most * left / depth:.3g}).")
    pieces = windows(tokenizer, texts, search.prompt + search.answer)
    every = max(1, len(pieces) // search.texts)
    ids = pieces[::every][: search.texts].to(model.device)
    like = similarity(model, ids)
    dense = read_on(model, ids, search.prompt)
    found, facts = [], []
    for mean in sparsities:

        def worse(shares: Sequence[float]) -> float:
            with wrap(model, FTP(router="static", schedule=[*none, *shares])):
                return float(distillation(read_on(model, ids, search.prompt), dense))

        best, lost, alike = genetic(worse, like[search.whole :], mean * depth / left, search)
        found.append([*none, *best])
        facts.append({"sparsity": mean, "kl_alike": alike, "kl": lost})
    return found, {"similarity": [round(one, 4) for one in like], "found": facts}


def genetic(
    worse: Callable[[Sequence[float]], float], like: Sequence[float], mean: float, search: Search
) -> tuple[list[float], float, float]:
    """The best shares of `mean` that were tried, what `worse` says of them, and of all blocks alike."""
    rng, depth = random.Random(search.seed), len(like)
    alike = [mean] * depth
    low, high = min(like), max(like)
    leaning = with_mean([(one - low) / max(high - low, 1e-9) for one in like], mean, search.most)
    mixed = [(a + b) / 2 for a, b in zip(alike, leaning, strict=True)]
    first = [alike, leaning, mixed]
    first += [_moved(rng.choice((leaning, mixed)), mean, search, rng) for _ in range(search.population - len(first))]
    ranked = sorted((worse(one), one) for one in first)
    uniform = next(lost for lost, one in ranked if one == alike)
    for _ in range(search.generations):
        ranked = ranked[: search.population // 2]
        children = []
        for _ in range(search.population - len(ranked)):
            (_, a), (_, b) = rng.sample(ranked, 2)
            children.append(_moved([(x + y) / 2 for x, y in zip(a, b, strict=True)], mean, search, rng))
        ranked = sorted([*ranked, *((worse(one), one) for one in children)])
    lost, best = ranked[0]
    return best, lost, uniform


def _moved(shares: Sequence[float], mean: float, search: Search, rng: random.Random) -> list[float]:
    changed = [one + rng.gauss(0, mean) if rng.random() < 1 / 3 else one for one in shares]
    return with_mean(changed, mean, search.most)


def with_mean(shares: Sequence[float], mean: float, most: float) -> list[float]:
    """All raised or lowered by the same, and held in [0, most], so that their mean is `mean`."""
    low, high = -max(shares), most - min(shares)
    for _ in range(HALVINGS):
        by = (low + high) / 2
        held = [min(most, max(0.0, one + by)) for one in shares]
        low, high = (low, by) if sum(held) / len(held) > mean else (by, high)
    return held


@torch.no_grad()
def read_on(model: Any, ids: Tensor, n: int) -> Tensor:
    """[B (L - n), V] logits of ids[:, n:], the first n read at once and the others on their cache."""
    prompt = model(ids[:, :n], use_cache=True, logits_to_keep=1)
    if ids.shape[1] == n + 1:
        return prompt.logits[:, -1]
    rest = model(ids[:, n:-1], past_key_values=prompt.past_key_values, use_cache=True)
    return torch.cat([prompt.logits[:, -1:], rest.logits], 1).flatten(0, 1)


@torch.no_grad()
def similarity(model: Any, ids: Tensor) -> list[float]:
    """Mean cosine of each block's input and output over tokens."""
    parts, found, undo = find_skip_parts(model), [], []
    for layer in parts.decoder.layers:
        undo.append(
            layer.register_forward_hook(
                lambda module, args, kwargs, output: found.append(
                    float(
                        F.cosine_similarity(
                            (args[0] if args else kwargs["hidden_states"]).float(), output.float(), dim=-1
                        ).mean()
                    )
                ),
                with_kwargs=True,
            )
        )
    try:
        parts.decoder(input_ids=ids, use_cache=False)
    finally:
        for one in undo:
            one.remove()
    return found

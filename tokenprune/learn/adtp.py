"""Training of AD-TP's two predictors beside a frozen text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError, InvalidArgumentError
from ..fingerprint import fingerprint
from ..ops import inner_tokens, keep_best, tokens_left
from ..predictors import SaliencyPredictor
from ..predictors.saliency import RATIOS
from . import losses
from .attributions import integrated_gradients, token_shares
from .frozen_encoder import FrozenEncoder
from .loop import Plan, train
from .masks import log_retention

LEAST = 5  # tokens of a text, [CLS] and [SEP] among them, so that there is a choice
NEAR = 4  # times as many neighbours in length as a batch has texts are those it is drawn from
MANY = 4  # times as many texts does a batch of the first part have, which never runs the encoder
BLOCKED = -1e4  # logit of what has no part in a softmax


@dataclass(frozen=True, kw_only=True)
class SaliencyRecipe:
    """What is learnt, and how.

    First the frozen encoder tells of each text its input embeddings, its answer, and the share that each inner token
    has in the integrated gradients of it. Within the first `imitate` of the steps TSP learns the cross entropy of
    softmax(u) against these shares, with weight 1; this part never runs the encoder.

    Then TSP learns from what the encoder makes of texts cut short. `draws` choices are drawn at a candidate ratio from
    the relaxed top-k of u (gates sigmoid((u - t) / temperature), whose log-odds are the noise); the log-probability of
    a choice falls as its distance is above the mean of the draws (in deviations of the text's draws, times `distill`).
    The shares count with weight `align` meanwhile. ARP learns, on `chosen` texts of a batch, the mean over its softmax
    of (distance at each candidate ratio) + `price` rho. The second part is the retainer loss.

    The distance is 1 - cosine of embeddings, or KL of logits; attributed is the embedding's part along itself, or the
    logit of the class. Of the paper are the attribution, alignment of normalised shares, distillation, and a loss on
    what is retained. It fine-tunes the encoder and has a task loss, and lets the student's own attribution teach it
    towards the end; here the encoder is frozen, and distances do that. All weights are designed here, and so are the
    draws: the gradient through straight-through gates does not see what words in a row say together.

    Attributes:
        batch: texts of a step; tokens: of a text at most; texts: at most, for which 4 D bytes per token are kept.
        hidden, ratios: of the predictor.
        pool: see `FrozenEncoder`.
        points: m of the integrated gradients.
    """

    batch: int = 8
    tokens: int = 128
    texts: int = 4000
    hidden: int = 64
    ratios: Sequence[float] = RATIOS
    pool: str = "mean"
    points: int = 1
    imitate: float = 0.5
    align: float = 0.1
    draws: int = 4
    temperature: float = 0.3
    distill: float = 0.25
    price: float = 0.3
    chosen: int = 2

    def __post_init__(self):
        least = {"batch": 1, "tokens": LEAST, "texts": 1, "hidden": 2, "points": 1, "draws": 2, "chosen": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InvalidArgumentError(f"{name}={getattr(self, name)!r} is below {value}: give at least {value}.")
        if not 0 <= self.imitate <= 1 or self.temperature <= 0:
            raise InvalidArgumentError(
                f"imitate={self.imitate}, temperature={self.temperature}: give a share from 0 to 1 and a positive "
                "temperature."
            )
        if not any(one < 1 for one in self.ratios):
            raise InvalidArgumentError(f"ratios={self.ratios!r} has none below 1: give some.")


class Told(NamedTuple):
    """What the frozen encoder says of texts: x [B, L, D], real [B, L] bool, answer [B, E], shares [B, L]."""

    x: Tensor
    real: Tensor
    answer: Tensor
    shares: Tensor


def train_adtp(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    folder: str | Path,
    *,
    plan: Plan,
    recipe: SaliencyRecipe | None = None,
    data: str = "",
) -> tuple[SaliencyPredictor, dict]:
    """Train the predictor of `ADTP(predictor=folder)`; goes on where the folder has an unfinished training.

    Args:
        model: a loaded text encoder, bare or with a head of its task; frozen meanwhile, and left as it was.
        texts: to train on, without labels.
        data: name of the texts, which two runs must share for one to go on.

    Returns:
        The predictor, in eval mode, and what training.json has.

    Raises:
        InputError: no text is long enough.
        TrainingError: see `train`.
        UnsupportedModelError: tokens cannot leave the model.
    """
    recipe = recipe or SaliencyRecipe()
    frozen = FrozenEncoder(model, pool=recipe.pool)
    longest = min(recipe.tokens, frozen.parts.encoder.config.max_position_embeddings)
    encode = partial(tokenizer, truncation=True, max_length=longest)
    with frozen.attached():
        told = _all_told(frozen, encode, texts, recipe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            module = SaliencyPredictor(
                width=told[0].x.shape[-1],
                hidden=recipe.hidden,
                ratios=recipe.ratios,
                base=fingerprint(frozen.parts.model),
            ).to(model.device)

        def step(number: int, over: float) -> dict[str, Tensor]:
            if over < recipe.imitate:
                picked = torch.randint(len(told), (MANY * recipe.batch,)).tolist()
                return _imitated(module, _joined([told[i] for i in picked]))
            return _cut(frozen, module, _joined(_neighbours(told, recipe.batch)), recipe)

        about = {**asdict(recipe), "ratios": list(recipe.ratios), "data": data, "base": module.base}
        facts = train(module, step, plan, Path(folder), about={**about, "of": len(told)})
    return module, facts


def _all_told(frozen: FrozenEncoder, encode: Callable, texts: Sequence[str], recipe: SaliencyRecipe) -> list[Told]:
    """Of each text by itself, in the order of their lengths."""
    every = max(1, -(-len(texts) // recipe.texts))
    lengths = {text: len(encode(text)["input_ids"]) for text in texts[::every]}
    long = sorted((text for text, n in lengths.items() if n >= LEAST), key=lengths.get)
    if not long:
        raise InputError(f"none of {len(texts)} texts has {LEAST} tokens: give longer ones.")
    found, console, device = [], Console(stderr=True), frozen.parts.model.device
    starts = range(0, len(long), MANY * recipe.batch)
    for first in track(starts, "attribution", console=console, disable=not console.is_terminal):
        batch = encode(long[first : first + MANY * recipe.batch], padding=True, return_tensors="pt").to(device)
        (x, answer), real = frozen.read(batch), batch["attention_mask"].bool()
        number = _number(frozen, real, answer)
        shares = token_shares(integrated_gradients(number, x, recipe.points), inner_tokens(real))
        found += [Told(x[i][row], row[row], answer[i], shares[i][row]) for i, row in enumerate(real)]
    return found


def _number(frozen: FrozenEncoder, real: Tensor, answer: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda point: frozen.number(frozen.answer(point, real), answer)


def _joined(several: Sequence[Told]) -> Told:
    columns = Told(*zip(*several, strict=True))
    x, real, shares = (pad_sequence(one, batch_first=True) for one in (columns.x, columns.real, columns.shares))
    return Told(x, real, torch.stack(columns.answer), shares)


def _neighbours(told: Sequence[Told], count: int) -> list[Told]:
    """Some, about equally long, so that there is little padding."""
    near = min(NEAR * count, len(told))
    first = int(torch.randint(len(told) - near + 1, ()))
    return [told[first + i] for i in torch.randperm(near)[:count].tolist()]


def _imitated(module: SaliencyPredictor, told: Told) -> dict[str, Tensor]:
    scores = module(told.x, told.real)
    align = losses.ranking(scores.masked_fill(~inner_tokens(told.real), BLOCKED), told.shares)
    idle = 0 * module.choose(told.x, told.real, scores.detach()).sum()  # so that every weight has a gradient
    return {"loss": align + idle, "align": align}


def _cut(frozen: FrozenEncoder, module: SaliencyPredictor, told: Told, recipe: SaliencyRecipe) -> dict[str, Tensor]:
    align = _imitated(module, told)["align"]
    scores, below = module(told.x, told.real), [one for one in module.ratios if one < 1]
    ratio = below[int(torch.randint(len(below), ()))]
    keep, chances = drawn(scores, told.real, ratio, recipe.temperature, recipe.draws)
    apart = torch.stack([distance(frozen, told, one) for one in keep])
    above = (apart - apart.mean(0)) / (apart.std(0) + 1e-3)
    few = Told(*(one[: recipe.chosen] for one in told))
    chosen = module.choose(few.x, few.real, scores[: recipe.chosen].detach()).softmax(1)
    ratios = torch.tensor(module.ratios, device=scores.device)
    costs = distances(frozen, few, scores[: recipe.chosen].detach(), module.ratios)
    expected, retained = (chosen * costs).sum(1).mean(), (chosen * ratios).sum(1).mean()
    loss = recipe.align * align + recipe.distill * (above * chances).mean() + expected + recipe.price * retained
    return {"loss": loss, "align": align, "distance": apart.mean(), "expected": expected, "retained": retained}


def drawn(scores: Tensor, real: Tensor, ratio: float, temperature: float, draws: int) -> tuple[Tensor, Tensor]:
    """Choices at random from a relaxed top-k: [K, B, L] bool, and the log-probability of each, [K, B].

    A choice is the top k of u + temperature * logistic noise. Its log-probability is that of independent gates
    sigmoid((u - t) / temperature) which sum to k, and so near that of the choice, not equal to it.

    Args:
        scores: u, real: [B, L].
    """
    within, n = inner_tokens(real), real.sum(1)
    count = tokens_left(torch.full_like(n, ratio, dtype=torch.double), n)
    k = (count - 2).clamp_min(1).minimum((n - 3).clamp_min(1))
    lowest = float(scores.detach().masked_fill(~within, torch.inf).amin()) - 100 * temperature
    opened = log_retention(scores.masked_fill(~within, lowest), k, temperature)
    shut = torch.log1p(-opened.exp().clamp_max(1 - 1e-6))
    noise = torch.rand(draws, *scores.shape).clamp(1e-6, 1 - 1e-6).logit().to(scores.device)
    keep = torch.stack([keep_best(scores.detach() + temperature * one, real, count) for one in noise])
    return keep, (torch.where(keep, opened, shut) * within).sum(-1)


@torch.no_grad()
def distance(frozen: FrozenEncoder, told: Told, keep: Tensor) -> Tensor:
    """[B], of what the encoder answers to the tokens that stay from what it answers to the whole text."""
    count = keep.sum(1)
    order = (~keep).long().argsort(dim=1, stable=True)[:, : int(count.max())]
    valid = torch.arange(order.shape[1], device=keep.device) < count[:, None]
    rows = torch.arange(len(keep), device=keep.device)[:, None]
    return frozen.apart(frozen.answer(told.x[rows, order], valid), told.answer)


def distances(frozen: FrozenEncoder, told: Told, scores: Tensor, ratios: Sequence[float]) -> Tensor:
    """[B, C], of texts cut by scores, at each ratio."""
    n = told.real.sum(1)
    counts = [tokens_left(torch.full_like(n, ratio, dtype=torch.double), n) for ratio in ratios]
    return torch.stack([distance(frozen, told, keep_best(scores, told.real, one)) for one in counts], 1)

"""Training of FTP's router beside a frozen language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InvalidArgumentError
from ..fingerprint import fingerprint
from ..predictors import TokenRouter
from . import losses
from .loop import Plan, train
from .soft_skip import SoftSkip


@dataclass(frozen=True, kw_only=True)
class RouterRecipe:
    """What is learnt, and how.

    A step reads `batch` texts of `prompt` + `answer` tokens. A mean sparsity is drawn, and tokens of the prompt skip
    blocks by the schedule of that mean. The loss is (1 - w) `distill` KL(dense || pruned) of the words behind the
    prompt, plus `sparse` sum_i max(s_i - s_hat_i, 0), where s_hat_i is the router's mean probability to skip, plus w
    `guide` times the cross entropy of the static router's decisions. w falls from 1 to 0 within the first `guided` of
    the steps: of tokens chosen at random the gradient of the distance is large and says little.

    How many tokens skip is exact in training as it is later, so the second term only sets the level of the two logits.
    The paper distils the last block's output of all tokens; here it is the words that are predicted, behind a prompt
    that skipped, as the router will be used. Its weights are not known: these are designed here.

    Attributes:
        rows, hidden: of the router.
        sparsities: smallest and largest mean that is drawn.
        temperature: of the relaxed choice, at the beginning and at the end.
        noise: scale of the Gumbel noise, of the temperature.
    """

    batch: int = 1
    prompt: int = 80
    answer: int = 32
    rows: int = 16
    hidden: int = 64
    sparsities: tuple[float, float] = (0.1, 0.4)
    temperature: tuple[float, float] = (0.5, 0.1)
    noise: float = 0.1
    distill: float = 1.0
    sparse: float = 0.1
    guide: float = 1.0
    guided: float = 0.4

    def __post_init__(self):
        if not 0 < self.sparsities[0] <= self.sparsities[1] < 1:
            raise InvalidArgumentError(f"sparsities={self.sparsities} are none: give 0 < smallest <= largest < 1.")
        for name, least in (("batch", 1), ("prompt", 4), ("answer", 1), ("rows", 1), ("hidden", 1)):
            if getattr(self, name) < least:
                raise InvalidArgumentError(f"{name}={getattr(self, name)!r} is below {least}: give at least {least}.")


def windows(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """[W, length] ids: the texts one behind the other, cut in pieces.

    Raises:
        InputError: fewer tokens than one piece has.
    """
    ids = torch.tensor(tokenizer("\n\n".join(texts), add_special_tokens=False)["input_ids"])
    count = len(ids) // length
    if not count:
        raise InputError(f"texts have {len(ids)} tokens, and a piece takes {length}: give more text.")
    return ids[: count * length].view(count, length)


def train_ftp(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    folder: str | Path,
    *,
    plan: Plan,
    schedules: Sequence[Sequence[float]] = (),
    recipe: RouterRecipe | None = None,
    data: str = "",
) -> tuple[TokenRouter, dict]:
    """Train a router for `FTP(predictor=folder)`; goes on where the folder has an unfinished training.

    Args:
        model: a loaded language model; frozen meanwhile, and left as it was.
        texts: to train on.
        schedules: of `search_schedules`; without any, all blocks are skipped alike.
        data: name of the texts, which two runs must share for one to go on.

    Returns:
        The router, in eval mode, and what training.json has.

    Raises:
        InputError: too little text.
        InvalidArgumentError: a schedule of another depth.
        PredictorError: `recipe.sparsities` go beyond the schedules.
        TrainingError: see `train`.
        UnsupportedModelError: tokens cannot skip blocks of the model.
    """
    recipe = recipe or RouterRecipe()
    soft = SoftSkip(model)
    depth = len(soft.parts.decoder.layers)
    if any(len(one) != depth for one in schedules):
        raise InvalidArgumentError(f"schedules have {len(schedules[0])} shares, and the model has {depth} blocks.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        router = TokenRouter(schedules=schedules, rows=recipe.rows, hidden=recipe.hidden, base=fingerprint(model)).to(
            model.device
        )
    router.schedule_at(recipe.sparsities[1])
    pieces = windows(tokenizer, texts, recipe.prompt + recipe.answer)

    def step(number: int, over: float) -> dict[str, Tensor]:
        ids = pieces[torch.randint(len(pieces), (recipe.batch,))].to(model.device)
        least, most = recipe.sparsities
        sparsity = least + (most - least) * float(torch.rand(()))
        shares = router.schedule_at(sparsity) or [sparsity] * depth
        first, last = recipe.temperature
        temperature = first * (last / first) ** over
        teacher = soft.dense(ids, recipe.prompt)
        logits, decisions = soft.routed(ids, recipe.prompt, router, shares, temperature=temperature, noise=recipe.noise)
        distill = losses.distillation(logits, teacher)
        sparse = torch.stack([one.lacking() for one in decisions]).sum()
        guide = torch.stack([one.apart() for one in decisions]).mean()
        w = max(0.0, 1 - over / recipe.guided) if recipe.guided > 0 else 0.0
        loss = (1 - w) * recipe.distill * distill + recipe.sparse * sparse + w * recipe.guide * guide
        return {"loss": loss, "distill": distill, "sparse": sparse, "guide": guide}

    about = {**asdict(recipe), "data": data, "base": router.base, "schedules": router.schedules}
    with soft.attached():
        facts = train(router, step, plan, Path(folder), about=about)
    return router, facts

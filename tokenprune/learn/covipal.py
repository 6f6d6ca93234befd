"""Training of CoViPAL's module beside a frozen vision-language model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError, InvalidArgumentError
from ..fingerprint import fingerprint
from ..predictors import PruningModule
from ..tokens import VisualTokens
from . import losses
from .data import Examples, encoded
from .loop import Plan, train
from .teacher import Lesson, Teacher

Signal = Literal["worth", "attention"]
LEAST = 0.01  # nats: images whose gates move their answers by less have little to say about them


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is learnt, and how.

    Visual tokens have gates, whose log is added to the attention to their keys in all layers. What a token is worth to
    an answer is the gradient of its loss, `words` times its cross entropy plus `distill` times the KL from the unpruned
    model, with respect to its gate: one backward through the frozen language model, standardised per image.

    Stage 1, imitation: all gates are `equal`, and scores u are regressed on what tokens are worth there, times `scale`.
    Stage 2, end to end: a budget is drawn for every image, the gates of those the module would keep are 1 and those of
    the others leak, and u is moved by what tokens are worth there: the module climbs the gradient, where each image
    counts alike however sure the model is of a wrong answer.

    Attributes:
        batch: examples of a step of either stage.
        hidden, layers, heads: of the module; None: `hidden` is half of the language model's width, at most 512.
        imitate: share of the steps that stage 1 takes.
        refine: highest learning rate of stage 2, a share of that of stage 1.
        remember: batches of stage 1, which it goes over again and again: what tokens are worth is worked out once,
            and a step of the module alone takes a fraction of that. Held in main memory, 2 (N + M) D bytes an image.
        signal: what stage 1 imitates. "attention", the paper's: the log of the attention each visual token gets from
            the text behind it at layer `guide`, a share of the depth.
        equal: gate of all tokens in stage 1.
        keeps: smallest and largest share of a unit's tokens that stage 2 draws, evenly in its logarithm.
        leak: gate of what is not kept. With gates that are shut the loss is cliffs, whose slope says little.
        dither: see `PruningModule.spread`; another matrix in every step of stage 2.
    """

    batch: int = 32
    hidden: int | None = None
    layers: int = 2
    heads: int = 4
    imitate: float = 0.975
    refine: float = 0.25
    remember: int = 225
    signal: Signal = "worth"
    guide: float = 0.5
    scale: float = 0.5
    equal: float = 0.05
    keeps: tuple[float, float] = (0.015, 0.3)
    leak: float = 0.1
    dither: float = 3.2
    words: float = 1.0
    distill: float = 1.0

    def __post_init__(self):
        least, most = self.keeps
        if not 0 < least <= most < 1:
            raise InvalidArgumentError(f"keeps=({least}, {most}) are no shares: give 0 < smallest <= largest < 1.")
        if self.signal not in get_args(Signal):
            raise InvalidArgumentError(f"signal={self.signal!r} is neither of {', '.join(get_args(Signal))}.")
        for name in ("equal", "leak"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)!r} is no gate: give one in (0, 1).")
        if min(self.batch, self.remember) < 1 or not 0 <= self.imitate <= 1 or self.refine <= 0:
            raise InvalidArgumentError(
                f"batch={self.batch}, remember={self.remember}, imitate={self.imitate}, refine={self.refine}: give at "
                "least 1, at least 1, a share from 0 to 1, and a share above 0."
            )

    @property
    def cycles(self) -> tuple[tuple[float, float], ...]:
        """Of the learning rate."""
        stages = ((self.imitate, 1.0), (1 - self.imitate, self.refine))
        return tuple(stage for stage in stages if stage[0] > 0)


def train_covipal(
    model: Any,
    processor: Any,
    examples: Examples,
    folder: str | Path,
    *,
    plan: Plan,
    recipe: Recipe | None = None,
    data: str = "",
) -> tuple[PruningModule, dict]:
    """Train a module for `CoViPAL(predictor=folder)`; goes on where the folder has an unfinished training.

    Args:
        model: a loaded vision-language model; frozen meanwhile, and left as it was.
        examples: number -> picture, question and answer.
        data: name of these, which two runs must share for one to go on.

    Returns:
        The module, in eval mode, and what training.json has.

    Raises:
        InputError: the examples cannot be used.
        TrainingError: see `train`.
        UnsupportedModelError: the model cannot be pruned, or takes no soft retention.
    """
    recipe = recipe or Recipe()
    width = model.config.get_text_config().hidden_size
    hidden = recipe.hidden or min(512, width // 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        module = PruningModule(
            width=width,
            hidden=hidden,
            layers=recipe.layers,
            heads=recipe.heads,
            dither=recipe.dither,
            base=fingerprint(model),
        ).to(model.device)
    teacher = Teacher(model, guide=recipe.guide if recipe.signal == "attention" else None)
    remembered: dict[int, _Task] = {}
    checked: list[int] = []

    def imitated(number: int) -> _Task:
        """One of the first `remember` batches; the same whenever it is asked for, also by a run that goes on."""
        number %= recipe.remember
        if number not in remembered:
            lesson, tokens = taught(number)
            if recipe.signal == "worth":
                targets, _ = _worth(teacher, lesson, [torch.full(one.shape, recipe.equal) for one in tokens], recipe)
            else:
                targets = [losses.standardised_log(group.attention) for group in lesson.groups]
            shelved = [_sent(one, "cpu", torch.bfloat16) for one in tokens]
            remembered[number] = _Task(shelved, [recipe.scale * one.cpu() for one in targets])
        return remembered[number]

    def taught(number: int) -> tuple[Lesson, list[VisualTokens]]:
        batch = [examples(number * recipe.batch + i) for i in range(recipe.batch)]
        lesson = teacher.lesson(encoded(processor, model, batch))
        if not checked:
            teacher.check(lesson)
            checked.append(number)
        return lesson, [group.tokens for group in lesson.groups]

    def scored(tokens: list[VisualTokens]) -> list[Tensor]:
        return [module(one.features, one.text, one.text_mask, one.grid) for one in tokens]

    def step(number: int, over: float) -> dict[str, Tensor]:
        facts: dict[str, Tensor] = {}
        if over < recipe.imitate:
            task = imitated(number)
            scores, targets = scored([_sent(one, model.device) for one in task.tokens]), task.targets
        else:
            remembered.clear()
            lesson, tokens = taught(number)
            scores, flips = scored(tokens), tuple(torch.randint(2**16, (3,)).tolist())
            gates = []
            for u, one in zip(scores, tokens, strict=True):
                k = _budgets(u, recipe)
                gates.append(_gates(module.spread(u.detach(), k, one.grid, flips), k, recipe))
            worth, facts = _worth(teacher, lesson, gates, recipe)
            targets = [u.detach() + one for u, one in zip(scores, worth, strict=True)]
        lost = [losses.regression(u, target.to(u.device)) for u, target in zip(scores, targets, strict=True)]
        return {"loss": torch.stack(lost).mean(), **facts}

    plan = replace(plan, cycles=recipe.cycles)
    with teacher.attached():
        facts = train(module, step, plan, Path(folder), about={**asdict(recipe), "data": data, "base": module.base})
    return module, facts


@dataclass(frozen=True)
class _Task:
    """What a module is shown of a batch, on the CPU, and what its scores [G, N] should be."""

    tokens: list[VisualTokens]
    targets: list[Tensor]


def _sent(tokens: VisualTokens, device: Any, dtype: torch.dtype | None = None) -> VisualTokens:
    values = {name: getattr(tokens, name).to(device, dtype) for name in ("features", "text")}
    return replace(tokens, **values, text_mask=tokens.text_mask.to(device))


def _budgets(u: Tensor, recipe: Recipe) -> Tensor:
    """[G, 1] tokens to stay of N, for images that are scored u [G, N]."""
    (g, n), (least, most) = u.shape, recipe.keeps
    return (least * (most / least) ** torch.rand(g, 1, device=u.device) * n).round().clamp(1, n - 1)


def _gates(scores: Tensor, k: Tensor, recipe: Recipe) -> Tensor:
    """[G, N], those of the model that keeps the k largest, but for the leak."""
    kept = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < k
    return kept + (~kept) * recipe.leak


def _worth(
    teacher: Teacher, lesson: Lesson, gates: list[Tensor], recipe: Recipe
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What every token is worth at these gates, [G, N] of mean 0 and deviation 1 per image, and the losses there."""
    if len(lesson.targets) == 0:
        raise InputError("data: no answer in this batch has a token of the model's vocabulary.")
    with torch.enable_grad():
        gates = [one.to(teacher.model.device, copy=True).requires_grad_() for one in gates]
        logits = teacher.retold(lesson.places, torch.cat([one.log().flatten() for one in gates]))
        words, distill = losses.words(logits, lesson.targets), losses.distillation(logits, lesson.logits)
        nats = len(logits) * (recipe.words * words + recipe.distill * distill)
        slopes = torch.autograd.grad(nats, gates)
    return [losses.standardised(-one, least=LEAST) for one in slopes], {
        "words": words.detach(),
        "distill": distill.detach(),
    }

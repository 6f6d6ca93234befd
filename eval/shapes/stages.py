"""The stages of the training and the loop that runs them."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from .data import IDS, IGNORED, KIND_NAMES, Batch, Batches
from .modeling import Packed
from .questions import COLOR_NAMES, KINDS
from .scenes import SHAPES

WARMUP = 100  # steps of linear warm-up of every stage
DECAY = 0.3  # share of a stage's steps over which the rate falls to zero at its end, if it does
CLIP = 1.0  # largest gradient norm
BACKGROUND_WEIGHT = 0.15  # of a background patch beside an object patch, in the patch losses
PLACE_WEIGHT = 2.0  # of the error of an object's place beside its names
PRESENT_WEIGHT = 5.0  # of what CLS tells about the whole scene
DENSE_WEIGHT = 0.1  # of the dense losses while the whole model learns words
WEIGHT_DECAY = 0.05
STAGE_SCENES = 50_000_000  # scene numbers reserved per stage


@dataclass(frozen=True)
class Stage:
    """`batch`: images a step; `rows`: texts per image; `rate`: highest learning rate; `learn`: which parts move.

    `weights`, `easy_share`, `tours`, `halves`: see `data.Batches`; without weights all rows are captions.
    `places`: add `DenseHeads.places` to the loss. `decay`: let the rate fall to zero at the end of the stage.
    """

    name: str
    steps: int
    batch: int = 32
    rows: int = 16
    rate: float = 2e-3
    learn: tuple[str, ...] = ("tower", "decoder")
    weights: dict[str, float] = field(default_factory=dict)
    easy_share: float = 0.0
    tours: int = 0
    halves: int = 0
    places: bool = False
    decay: bool = True


LOOK_UPS = {"color": 1.0, "shape": 1.0, "exist": 0.5, "extreme": 0.2}
ALL_KINDS = dict.fromkeys(KINDS, 1.0) | {"count": 2.0, "count_shape": 2.0, "relation": 2.0}
HARD_KINDS = ALL_KINDS | {"relation": 2.5, "extreme": 1.5, "color": 0.5, "shape": 0.5}
RELATIONS = HARD_KINDS | {"relation": 4.0}
STAGES = (
    Stage("tower", 800, batch=64, rows=1, learn=("tower",)),
    Stage("alignment", 200, rows=1, learn=("projector",)),
    Stage("captions", 500, learn=("decoder",)),
    Stage("look-ups", 200, weights=LOOK_UPS, easy_share=0.125),
    Stage("questions", 800, weights=ALL_KINDS, easy_share=0.125, decay=False),
    Stage("tours", 600, weights=HARD_KINDS, easy_share=0.125, tours=4, decay=False),
    Stage("halves", 400, weights=RELATIONS, easy_share=0.125, tours=2, halves=4, decay=False),
    Stage("places", 1300, weights=RELATIONS, easy_share=0.125, tours=2, halves=2, places=True),
)


class DenseHeads(nn.Module):
    """Dense supervision of the tower, used in training only.

    Every object patch tells its object's shape, colour, centre and size, which spreads an object over all its patches.
    The CLS token tells which pairs of shape and colour are present, as CLIP's CLS sums up an image; without a task of
    its own its attention would mean nothing.
    """

    def __init__(self, width: int):
        super().__init__()
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.color = nn.Linear(width, len(COLOR_NAMES) + 1)
        self.place = nn.Linear(width, 3)
        self.present = nn.Linear(width, len(SHAPES) * len(COLOR_NAMES))
        self.projected_place = nn.Linear(width, 3)
        self.named_place = nn.Linear(width, 3)

    def forward(self, features: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss on features [B, 1 + VISUAL, width], and what it gets right of object patches and of present pairs."""
        cls, visual, on_object = features[:, 0], features[:, 1:], batch.shape > 0
        loss, seen = 0.0, {}
        for name, head, target in (("shape", self.shape, batch.shape), ("color", self.color, batch.color)):
            logits = head(visual).float()
            weight = torch.ones(logits.shape[-1])
            weight[0] = BACKGROUND_WEIGHT
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, ignore_index=IGNORED)
            seen[name] = (logits.argmax(-1) == target)[on_object].float()
        error = (self.place(visual).float() - batch.place).abs().mean(-1)[on_object]
        seen["place error"] = error.detach()

        labelled = batch.shape[:, 0] != IGNORED
        pair = ((batch.shape - 1) * len(COLOR_NAMES) + batch.color - 1).clamp(min=0)
        present = torch.zeros(len(pair), self.present.out_features).scatter_reduce(1, pair, on_object.float(), "amax")
        guess = self.present(cls).float()
        seen["present"] = (guess > 0)[labelled][present[labelled] > 0].float()
        missing = F.binary_cross_entropy_with_logits(guess[labelled], present[labelled])
        return loss + PLACE_WEIGHT * error.mean() + PRESENT_WEIGHT * missing, seen

    def places(self, projected: torch.Tensor, middle: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of reading the place of an object off its projected patches and off its name in the decoder.

        The decoder otherwise finds colours and shapes long before it learns to carry places to the words.
        """
        on_object, named = batch.shape > 0, ~batch.spot[..., 0].isnan()
        seen = (self.projected_place(projected[on_object]).float() - batch.place[on_object]).abs().mean()
        state = F.rms_norm(middle[named].float(), middle.shape[-1:])
        told = (self.named_place(state).float() - batch.spot[named]).abs().mean(-1)
        return seen + told.mean(), told.detach()


class Optimizers:
    """Muon for the matrices between layers, AdamW for everything else; one warm-up, plateau and decay for both."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], rate: float):
        matrices, others = [], []
        for name, parameter in parameters:
            inner = parameter.ndim == 2 and ("layers." in name or "projector" in name)
            (matrices if inner else others).append(parameter)
        self.rate = rate
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True)
        ]
        if matrices:
            muon = torch.optim.Muon(matrices, rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
            self.all.append(muon)
        self.parameters = [*matrices, *others]

    def step(self, loss: torch.Tensor, done: int, stage: Stage) -> None:
        """One update, the same in every process; `done` updates of the stage lie behind."""
        share = min((done + 1) / WARMUP, 1.0, (stage.steps - done) / (DECAY * stage.steps) if stage.decay else 1.0)
        loss.backward()
        _average([p.grad for p in self.parameters if p.grad is not None])
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * share
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def _average(gradients: list[torch.Tensor]) -> None:
    """Replace gradients by their mean over the training processes."""
    if dist.is_initialized():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class Trainer:
    """The packed model with its dense heads, stage by stage; `state()` and `restore()` continue an interrupted run."""

    def __init__(self, packed: Packed):
        self.packed = packed
        self.heads = DenseHeads(packed.model.config.vision_config.hidden_size)
        words = {"shape": SHAPES, "color": COLOR_NAMES}
        self.names = {part: torch.tensor([IDS[word] for word in names]) for part, names in words.items()}

    def optimizers(self, stage: Stage) -> Optimizers:
        """Optimizers over the parts that this stage trains; the others are frozen."""
        base = self.packed.model.model
        parts = {"tower": [base.vision_tower, self.heads], "projector": [base.multi_modal_projector]}
        parts["decoder"] = [base.multi_modal_projector, base.language_model]
        moving = [module for part in stage.learn for module in parts[part]]
        moving += [base.get_input_embeddings()] if "projector" in stage.learn else []
        self.packed.requires_grad_(False)
        for module in moving:
            module.requires_grad_(True)
        named = [*self.packed.named_parameters(), *self.heads.named_parameters()]
        base.vision_tower.post_layernorm.requires_grad_(False)  # feeds nothing that the language model reads
        return Optimizers([(n, p) for n, p in named if p.requires_grad], stage.rate)

    def loss(self, stage: Stage, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What a stage minimises on a batch, and right-or-wrong flags by name for its log."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled("tower" in stage.learn):
                features = self.packed.tower(batch.image)
            if stage.learn == ("tower",):
                return self.heads(features, batch)
            if stage.learn == ("projector",):
                return self._alignment(self.packed.model.model.multi_modal_projector(features[:, 1:]), batch)
            hidden, middle, projected = self.packed.decoder(features, batch.rows)
            loss, right = self.packed.word_loss(hidden, batch.targets)
            loss = loss + DENSE_WEIGHT * self._alignment(projected, batch)[0]
            if "tower" in stage.learn:
                loss = loss + DENSE_WEIGHT * self.heads(features, batch)[0]
            seen = {}
            if stage.places:
                lost, seen["named place error"] = self.heads.places(projected, middle, batch)
                loss = loss + lost
        supervised = batch.targets >= 0
        is_word = batch.targets[supervised] != IDS["<eos>"]
        kind = batch.kind[..., None].expand_as(batch.targets)[supervised][is_word]
        right = right[is_word].float()
        return loss, seen | {name: right[kind == i] for i, name in enumerate(KIND_NAMES) if (kind == i).any()}

    def _alignment(self, projected: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A projected object patch must name its shape and its colour through the tied word embeddings."""
        on_object = batch.shape > 0
        words, loss, seen = self.packed.model.get_input_embeddings().weight, 0.0, {}
        for name, target in (("shape", batch.shape), ("color", batch.color)):
            logits = projected[on_object].float() @ words[self.names[name]].float().T
            loss = loss + F.cross_entropy(logits, target[on_object] - 1)
            seen[name] = (logits.argmax(-1) == target[on_object] - 1).float()
        return loss, seen

    def state(self) -> dict:
        return {"model": self.packed.model.state_dict(), "heads": self.heads.state_dict()}

    def restore(self, state: dict) -> None:
        self.packed.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])


def batches(stage: Stage, number: int, start: int) -> Iterator[Batch]:
    """This process' share of every batch of a stage, from step `start` on."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    first = number * STAGE_SCENES
    options = {"weights": stage.weights, "easy_share": stage.easy_share, "tours": stage.tours, "halves": stage.halves}
    share = Batches(stage.batch // world, stage.rows, first, **options)
    return (share[step * world + rank] for step in count(start))


def run(
    trainer: Trainer,
    stages: tuple[Stage, ...],
    state_file: Path,
    save_every: int,
    report: Callable[[Stage, int, dict[str, float]], None],
    export: Callable[[Stage, int], None],
    draw: Callable[[Stage, int, int], Iterator] = batches,
) -> None:
    """All stages, from the beginning or from `state_file` if it exists, which the first process writes now and then.

    `draw`: a stage, its number and the first step -> this process' batches from that step on.
    """
    first, done, optimizer_state = 0, 0, None
    leads = not dist.is_initialized() or dist.get_rank() == 0
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        trainer.restore(saved["trainer"])
        first, done, optimizer_state = saved["stage"], saved["done"], saved["optimizers"]
    for number, stage in enumerate(stages[first:], first):
        optimizers = trainer.optimizers(stage)
        if optimizer_state is not None:
            optimizers.load_state_dict(optimizer_state)
        shares = draw(stage, number, done)
        log, since = {}, time.perf_counter()
        while done < stage.steps:
            loss, seen = trainer.loss(stage, next(shares))
            optimizers.step(loss, done, stage)
            done += 1
            for name, values in {"loss": loss.detach()[None], **seen}.items():
                log.setdefault(name, []).append(values)
            if (done % 20 == 0 or done == stage.steps) and leads:
                means = {name: torch.cat(values).mean().item() for name, values in log.items()}
                means["images/s"] = len(log["loss"]) * stage.batch / (time.perf_counter() - since)
                report(stage, done, means)
                log, since = {}, time.perf_counter()
            if (done % save_every == 0 or done == stage.steps) and leads:
                over = done == stage.steps
                torch.save(
                    {
                        "trainer": trainer.state(),
                        "stage": number + over,
                        "done": 0 if over else done,
                        "optimizers": None if over else optimizers.state_dict(),
                    },
                    state_file.with_suffix(".part"),
                )
                state_file.with_suffix(".part").replace(state_file)
                export(stage, done)
        done, optimizer_state = 0, None

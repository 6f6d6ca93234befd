"""Train a classifier: `python -m tokenprune.eval.shapes.classifier_train vit|motion --out DIR`.

An interrupted run continues where `DIR/state.pt` was last written.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from . import motion_data, vit_data
from .classifiers import build_motion, build_vit, motion_processor, save, vit_processor
from .inference import load
from .modeling import pixel_values
from .stages import CLIP, WARMUP, WEIGHT_DECAY, Optimizers, Stage, run

SAVE_EVERY = 200  # steps
DECAY = 0.5  # share of the steps over which the rate falls to zero
BACKGROUND_WEIGHT = 0.1  # of a patch of background beside a patch of a shape

Examples = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # what is seen, labels, what every token shows


@dataclass(frozen=True)
class Task:
    """`examples`: first number and how many -> train examples; `dense`: answers to each question about a token."""

    stage: Stage
    build: Callable[[], PreTrainedModel]
    processor: Callable[[], BaseImageProcessor]
    examples: Callable[[int, int], Examples]
    dense: tuple[int, ...]

    def batches(self, start: int, workers: int = 1) -> Iterator[Examples]:
        """From step `start` on; drawn by other processes if there are `workers`."""
        return iter(DataLoader(self, batch_size=None, sampler=count(start), num_workers=workers))

    def __getitem__(self, step: int) -> Examples:
        return self.examples(step * self.stage.batch, self.stage.batch)


def vit_from_tower() -> PreTrainedModel:
    return build_vit(load()[0].model.vision_tower)


TASKS = {
    "vit": Task(
        Stage("vit", 700, batch=32, rate=7e-4),
        vit_from_tower,
        vit_processor,
        vit_data.object_batch,
        vit_data.DENSE,
    ),
    "motion": Task(
        Stage("motion", 2900, batch=16, rate=1.5e-3),
        build_motion,
        motion_processor,
        motion_data.motion_batch,
        motion_data.DENSE,
    ),
}


class MatrixDecay(Optimizers):
    """AdamW for everything, with weight decay on what is no vector; warm-up, plateau, and a fall to zero."""

    def __init__(self, parameters: list[nn.Parameter], rate: float):
        self.rate, self.parameters = rate, parameters
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.all = [torch.optim.AdamW(groups, rate, betas=(0.9, 0.98))]

    def step(self, loss: torch.Tensor, done: int, stage: Stage) -> None:
        share = min(1.0, (done + 1) / WARMUP) * min(1.0, (stage.steps - done) / (DECAY * stage.steps))
        (optimizer,) = self.all
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = self.rate * share
        optimizer.step()


class ClassifierTrainer:
    """A classifier with the heads that ask every token what it shows; see `stages.Trainer`."""

    def __init__(self, model: PreTrainedModel, dense: tuple[int, ...], compiled: bool = True):
        self.model = model
        self.heads = nn.ModuleList(nn.Linear(model.config.hidden_size, things) for things in dense)
        model.set_attn_implementation("shapes_plain")
        if compiled:  # one by one, as they share their code
            for layer in next(m for m in model.modules() if isinstance(m, nn.ModuleList)):
                layer.compile()

    def optimizers(self, stage: Stage) -> MatrixDecay:
        return MatrixDecay([*self.model.parameters(), *self.heads.parameters()], stage.rate)

    def loss(self, stage: Stage, batch: Examples) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What is minimised on a batch, and right-or-wrong flags by name for the log."""
        seen, labels, shown = batch
        pixels = pixel_values(seen.flatten(0, -4)).unflatten(0, seen.shape[:-3])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.model.base_model(pixel_values=pixels).last_hidden_state
            tokens = hidden[:, -shown.shape[1] :]  # without CLS
            pooled = self.model.fc_norm(hidden.mean(1)) if hasattr(self.model, "fc_norm") else hidden[:, 0]
            logits, told = self.model.classifier(pooled).float(), [head(tokens).float() for head in self.heads]
        loss, right = F.cross_entropy(logits, labels), {"right": (logits.argmax(-1) == labels).float()}
        for guess, truth in zip(told, shown.unbind(-1), strict=True):
            weight = torch.ones(guess.shape[-1])
            weight[0] = BACKGROUND_WEIGHT
            loss = loss + F.cross_entropy(guess.flatten(0, 1), truth.flatten(), weight)
        return loss, right

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "heads": self.heads.state_dict()}

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])


def train(task: Task, folder: Path, seed: int = 0, compiled: bool = True) -> None:
    """From the beginning, or from `folder/state.pt` if it exists; writes a checkpoint there now and then."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = ClassifierTrainer(task.build(), task.dense, compiled)
    console, begun = Console(soft_wrap=True), time.perf_counter()

    def report(stage: Stage, done: int, means: dict[str, float]) -> None:
        minutes = (time.perf_counter() - begun) / 60
        facts = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        console.print(f"{stage.name} {done}/{stage.steps}  {minutes:.1f} min  {facts}", highlight=False)

    run(
        trainer,
        (task.stage,),
        folder / "state.pt",
        SAVE_EVERY,
        report,
        lambda stage, done: save(trainer.model, task.processor(), folder),
        lambda stage, number, start: task.batches(start),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tokenprune.eval.shapes.classifier_train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--out", type=Path, required=True, help="folder for state.pt and the Hugging Face checkpoint")
    parser.add_argument("--steps", type=int, help="of the whole run, in whose second half the rate falls to zero")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights of what is new")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one more process draws the examples")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = TASKS[given.task]
    train(replace(task, stage=replace(task.stage, steps=given.steps or task.stage.steps)), given.out, given.seed)


if __name__ == "__main__":
    main()

"""Train the video model from the image model: `python -m tokenprune.eval.shapes.video_train --out DIR`.

An interrupted run continues where `DIR/state.pt` was last written.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from torch import distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from .inference import load
from .stages import STAGE_SCENES, Optimizers, Stage, run
from .train import shortened
from .video_data import FACTS, IDS, ROWS, VideoBatch, VideoBatches
from .video_model import PackedVideo, build, processor

SAVE_EVERY = 100  # steps
FIRST_CLIP = 1_000_000_000  # above the scene numbers of the image model's training
DENSE_WEIGHT = 4.0  # of the squared error of what a shape does beside the loss of the words

CAPTIONS = {"caption": 3.0, "order": 1.0}
ALL = {"direction": 3.0, "count_moving": 2.0, "mover": 1.5, "first": 3.0, "before": 4.0, "order": 2.0, "caption": 3.0}
HARD = {"direction": 1.5, "count_moving": 5.0, "mover": 3.0, "first": 4.0, "before": 2.0, "order": 2.0, "caption": 1.0}
FINAL = HARD | {"direction": 2.0, "first": 3.0, "before": 3.0, "order": 1.0, "caption": 0.5}
DECODER = ("decoder",)
STAGES = (
    Stage("captions", 100, batch=16, rows=8, learn=DECODER, weights=CAPTIONS, decay=False),
    Stage("more captions", 150, batch=8, rows=8, learn=DECODER, weights=CAPTIONS, decay=False),
    Stage("questions", 700, batch=8, rows=16, learn=DECODER, weights=ALL, decay=False),
    Stage("hard questions", 600, batch=8, rows=16, learn=DECODER, weights=HARD, decay=False),
    Stage("final", 500, batch=16, rows=16, learn=DECODER, weights=FINAL),
)


class VideoTrainer:
    """The packed model with its dense heads; see `stages.Trainer`. The tower learns only where a stage says so."""

    def __init__(self, packed: PackedVideo):
        self.packed = packed
        width = packed.model.config.text_config.hidden_size
        self.heads = nn.ModuleDict({"seen": nn.Linear(width, FACTS), "named": nn.Linear(width, FACTS)})

    def optimizers(self, stage: Stage) -> Optimizers:
        base = self.packed.model.model
        self.packed.requires_grad_(False)
        moving = [base.multi_modal_projector, base.language_model, *([base.vision_tower] * ("tower" in stage.learn))]
        for module in moving:
            module.requires_grad_(True)
        base.image_newline.requires_grad_(True)
        base.vision_tower.post_layernorm.requires_grad_(False)  # feeds nothing that the language model reads
        named = [*self.packed.named_parameters(), *self.heads.named_parameters()]
        return Optimizers([(n, p) for n, p in named if p.requires_grad], stage.rate)

    def loss(self, stage: Stage, batch: VideoBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What a stage minimises on a batch, and right-or-wrong flags by name for its log."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled("tower" in stage.learn):
                features = self.packed.tower(batch.frames)
            last, named, visual = self.packed.decoder(features, batch.rows)
            loss, right = self.packed.word_loss(last, batch.targets)
        errors = {}
        for name, state, target in (("seen", visual, batch.seen), ("named", named, batch.spot)):
            known = ~target[..., 0].isnan()
            inner = F.rms_norm(state[known].float(), state.shape[-1:])
            error = (self.heads[name](inner) - target[known]).square()
            loss = loss + DENSE_WEIGHT * error.mean()
            errors[f"{name} way"], errors[f"{name} time"] = error[:, :3].detach(), error[:, 3:].detach()
        supervised = batch.targets >= 0
        is_word = batch.targets[supervised] != IDS["<eos>"]
        kind = batch.kind[..., None].expand_as(batch.targets)[supervised][is_word]
        right = right[is_word].float()
        return loss, errors | {name: right[kind == i] for i, name in enumerate(ROWS) if (kind == i).any()}

    def state(self) -> dict:
        return {"model": self.packed.model.state_dict(), "heads": self.heads.state_dict()}

    def restore(self, state: dict) -> None:
        self.packed.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])


def batches(stage: Stage, number: int, start: int) -> Iterator[VideoBatch]:
    """This process' share of every batch of a stage, from step `start` on."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = VideoBatches(stage.batch // world, stage.rows, FIRST_CLIP + number * STAGE_SCENES, stage.weights)
    return (share[step * world + rank] for step in count(start))


def save(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    """A standard Hugging Face folder, weights in bfloat16; the copy leaves the model in training untouched."""
    copy = LlavaOnevisionForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.to(torch.bfloat16).save_pretrained(folder)
    processor().save_pretrained(folder)


def work(rank: int, arguments: argparse.Namespace, stages: tuple[Stage, ...], meeting: str) -> None:
    """One of the training processes. Each has its share of every batch; after each step all hold the same weights."""
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=arguments.processes)
    trainer = VideoTrainer(PackedVideo(build(load()[0])))
    console, begun = Console(soft_wrap=True, quiet=rank > 0), time.perf_counter()

    def report(stage: Stage, done: int, means: dict[str, float]) -> None:
        minutes = (time.perf_counter() - begun) / 60
        facts = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        console.print(f"{stage.name} {done}/{stage.steps}  {minutes:.1f} min  {facts}", highlight=False)

    def export(stage: Stage, done: int) -> None:
        save(trainer.packed.model, arguments.out)

    run(trainer, stages, arguments.out / "state.pt", SAVE_EVERY, report, export, batches)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.shapes.video_train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for state.pt and the Hugging Face checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights of new words and of dense heads")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded processes that share every batch")
    parser.add_argument("--steps", nargs="*", default=[], metavar="NAME=STEPS", help="change the length of a stage")
    arguments = parser.parse_args()
    stages = shortened(STAGES, arguments.steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        spawn(work, (arguments, stages, f"{folder}/meeting"), nprocs=arguments.processes)


if __name__ == "__main__":
    main()

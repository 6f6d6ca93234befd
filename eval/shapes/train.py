"""Train the embedded model from nothing: `python -m tokenprune.eval.shapes.train --out DIR`.

An interrupted run continues where `DIR/state.pt` was last written. The same seed and hardware give the same model.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed as dist
from torch.multiprocessing import spawn
from transformers import LlavaForConditionalGeneration

from .language import processor
from .modeling import Packed, build
from .stages import STAGES, Stage, Trainer, run

SAVE_EVERY = 200  # steps


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """A standard Hugging Face folder, weights in bfloat16; the copy leaves the model in training untouched."""
    copy = LlavaForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.to(torch.bfloat16).save_pretrained(folder)
    processor().save_pretrained(folder)


def shortened(stages: tuple[Stage, ...], steps: list[str]) -> tuple[Stage, ...]:
    """The stages with the step counts that the command line gives as NAME=STEPS."""
    names = [stage.name for stage in stages]
    wanted = dict(item.partition("=")[::2] for item in steps)
    for name, count in wanted.items():
        if name not in names or not count.isdigit():
            raise ValueError(f"--steps {name}={count} is not NAME=STEPS; the names are {', '.join(names)}")
    return tuple(replace(stage, steps=int(wanted.get(stage.name, stage.steps))) for stage in stages)


def work(rank: int, arguments: argparse.Namespace, stages: tuple[Stage, ...], meeting: str) -> None:
    """One of the training processes. Each has its share of every batch; after each step all hold the same weights."""
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=arguments.processes)
    trainer = Trainer(Packed(build()))
    console, begun = Console(soft_wrap=True, quiet=rank > 0), time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars = {stage.name: progress.add_task(stage.name, total=stage.steps) for stage in stages}

        def report(stage: Stage, done: int, means: dict[str, float]) -> None:
            progress.update(bars[stage.name], completed=done)
            minutes = (time.perf_counter() - begun) / 60
            facts = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
            console.print(f"{stage.name} {done}/{stage.steps}  {minutes:.1f} min  {facts}", highlight=False)

        def export(stage: Stage, done: int) -> None:
            if stage.weights:  # before the question stages the model cannot answer
                save(trainer.packed.model, arguments.out)

        run(trainer, stages, arguments.out / "state.pt", SAVE_EVERY, report, export)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.shapes.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for state.pt and the Hugging Face checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded processes that share every batch")
    parser.add_argument("--steps", nargs="*", default=[], metavar="NAME=STEPS", help="change the length of a stage")
    arguments = parser.parse_args()
    stages = shortened(STAGES, arguments.steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        spawn(work, (arguments, stages, f"{folder}/meeting"), nprocs=arguments.processes)


if __name__ == "__main__":
    main()

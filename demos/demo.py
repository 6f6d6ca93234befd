"""What every policy keeps, answers and costs: `python demos/demo.py [--image F] [--question Q] [--out demo.png]`."""

import json
import statistics
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
import picture
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

import tokenprune
from tokenprune.cli import one_sentence, open_image
from tokenprune.eval import shapes
from tokenprune.eval.stopwatch import Stopwatch

BUDGETS = (0.5, 0.25, 0.11, 0.05)
POLICIES = {  # name -> its fields
    "covipal": {"predictor": shapes.PREDICTOR},
    "cdpruner": {},
    "divprune": {},
    "uniform": {},
    "random": {},
}
SCENES = 3  # committed ones shown
SIDE = 384  # px of a picture in the figure
QUESTION = "how many objects are there?"  # asked about a picture that came without a question
PARTS = ("tower + projector", "selection", "prefill", "decode")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Task:
    """A picture and a question; `truth` is the right answer, where it is known."""

    image: Image.Image
    question: str
    truth: str | None = None


@dataclass
class Result:
    """An answer, what was kept for it, and the median milliseconds of each of PARTS."""

    answer: str
    report: tokenprune.Report | None
    ms: dict[str, float]


def samples() -> list[Task]:
    """Committed scenes, each asked another kind of question: the first scene its first, the second its second."""
    folder = resources.files("tokenprune.eval.shapes") / "samples"
    tasks = []
    for number, scene in enumerate(json.loads((folder / "samples.json").read_text())[:SCENES]):
        asked = scene["questions"][number]
        tasks.append(Task(open_image(folder / scene["file"]), asked["question"], asked["answer"]))
    return tasks


class Asker:
    """One picture and question, answered under any policy."""

    def __init__(self, model, processor, task: Task, repeats: int):
        self.model, self.processor, self.repeats = model, processor, repeats
        self.inputs = processor(text=[shapes.prompt(task.question)], images=[task.image], return_tensors="pt")

    def ask(self, handle: tokenprune.Handle | None = None) -> Result:
        parts = []
        for _ in range(self.repeats + 1):
            with Stopwatch(self.model) as watch:
                generated = self.model.generate(**self.inputs)
            selection = (handle.report().selection_ms or 0.0) if handle else 0.0
            parts.append((1e3 * watch.tower, selection, 1e3 * watch.prefill, 1e3 * watch.decode))
        medians = [statistics.median(column) for column in zip(*parts[1:], strict=True)]  # the first one warms up
        words = generated[0, self.inputs["input_ids"].shape[1] :]
        answer = self.processor.decode(words, skip_special_tokens=True).strip()
        return Result(answer, handle.report() if handle else None, dict(zip(PARTS, medians, strict=True)))


def answer_all(asker: Asker) -> tuple[Result, dict[tuple[str, float], Result]]:
    """The dense result, and one for every policy and budget."""
    dense, pruned = asker.ask(), {}
    for name, fields in POLICIES.items():
        for keep in BUDGETS:
            policy = tokenprune.get_policy(name)(keep=keep, **fields)
            with tokenprune.wrap(asker.model, policy, timing=True) as handle:
                pruned[name, keep] = asker.ask(handle)
    return dense, pruned


def answers_table(task: Task, dense: Result, pruned: dict[tuple[str, float], Result]) -> Table:
    right = task.truth or dense.answer
    title = f"[bold]{task.question}[/bold]   dense: {colored(dense.answer, right)}"
    title += f"   right: {task.truth}" if task.truth else ""
    table = Table(title=title, title_justify="left", title_style="", header_style="bold")
    table.add_column("policy")
    for keep in BUDGETS:
        report = pruned["uniform", keep].report
        table.add_column(f"{keep:.0%} ({report.kept}/{report.total})", justify="center")
    for policy in POLICIES:
        table.add_row(policy, *(colored(pruned[policy, keep].answer, right) for keep in BUDGETS))
    return table


def shown(image: Image.Image) -> np.ndarray:
    """[SIDE, SIDE, 3] in 0..1: stretched to a square, as the model's processor does."""
    return np.asarray(image.resize((SIDE, SIDE))) / 255


def colored(answer: str, right: str) -> str:
    return f"[green]{answer}[/green]" if answer == right else f"[red]{answer or '(nothing)'}[/red]"


def times_table(results: dict[tuple[str, str], list[Result]]) -> Table:
    """Rows of (policy, budget); milliseconds averaged over the pictures."""
    title = "milliseconds on one CPU thread (mean over the pictures of the median of each)"
    table = Table(title=title, title_justify="left", title_style="", header_style="bold")
    table.add_column("policy")
    for column in ("kept", *PARTS, "sum"):
        table.add_column(column, justify="right")
    for (policy, kept), several in results.items():
        ms = [statistics.fmean(result.ms[part] for result in several) for part in PARTS]
        table.add_row(policy, kept, *(f"{value:.1f}" for value in [*ms, sum(ms)]))
    return table


@app.command()
@one_sentence()
def main(
    image: Annotated[list[Path] | None, typer.Option(help="Image file; repeat for several.")] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about them.")] = None,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("demo.png"),
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each answer, after one to warm up.")] = 3,
) -> None:
    """Ask a small vision-language model about pictures, with fewer and fewer of its visual tokens."""
    if question is not None and not question.strip():
        raise tokenprune.InputError("question='' is empty: ask something, or leave it out.")
    if not out.absolute().parent.is_dir():
        raise tokenprune.InputError(f"out={str(out)!r} is in no existing folder: give a path in one that exists.")
    if image:
        tasks = [Task(open_image(path), question or QUESTION) for path in image]
    else:
        tasks = samples() if question is None else [Task(one.image, question) for one in samples()[:1]]
    run(tasks, out, repeats)


@torch.inference_mode()
def run(tasks: list[Task], out: Path, repeats: int) -> None:
    torch.set_num_threads(1)  # a model this small gains little from more, and times become steady
    disable_progress_bar()
    console = Console()
    model, processor = shapes.load()
    blocks, times = [], {}
    for task in track(tasks, "asking", console=console, transient=True):
        asker = Asker(model, processor, task, repeats)
        dense, pruned = answer_all(asker)
        console.print(answers_table(task, dense, pruned), "")
        times.setdefault(("dense", "100%"), []).append(dense)
        for (policy, keep), result in pruned.items():
            times.setdefault((policy, f"{keep:.0%}"), []).append(result)
        blocks.append(picture.Block(shown(task.image), task.question, task.truth, dense.answer, pruned))
    console.print(times_table(times))
    picture.draw(blocks, tuple(POLICIES), BUDGETS, out)
    console.print(f"\nwrote [bold]{out}[/bold]: kept patches bright, dropped ones dark")


if __name__ == "__main__":
    app()

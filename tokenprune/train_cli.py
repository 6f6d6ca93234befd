"""`tokenprune train debias | schedule`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .command import assignment, encode, load, make_policy, one_sentence
from .errors import InputError
from .readers import open_image

if TYPE_CHECKING:
    from .calibrate.watch import Batch

Model = Annotated[str, typer.Option(help="Checkpoint folder or hub id of a vision-language model.")]
Images = Annotated[Path, typer.Option(help="Folder of pictures, searched with its sub-folders.")]
Prompts = Annotated[
    str,
    typer.Option(
        help="What to ask: text, or a file with a question per line. The shorter of questions and pictures is repeated."
    ),
]
Out = Annotated[Path, typer.Option(help="JSON file to write.")]
Limit = Annotated[int, typer.Option(min=1, help="Most prompts to look at.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:0; the default is the GPU if there is one.")]

train = typer.Typer(
    no_args_is_help=True,
    help="Fit what policies inside the language model use to a model, on pictures and questions of your own.",
)


@train.command()
@one_sentence()
def debias(
    model: Model,
    images: Images,
    prompts: Prompts,
    out: Out = Path("trend.json"),
    policy: Annotated[str, typer.Option(help="Policy whose scores are to be freed of their trend.")] = "fastv",
    fields: Annotated[list[str] | None, typer.Option("--set", help="A field of the policy: layer=3.")] = None,
    kind: Annotated[str, typer.Option(help="Form of the trend: exponential or cubic.")] = "exponential",
    padding: Annotated[
        str, typer.Option(help="Leave out padding of pictures pasted on a square: area, crop or bilinear.")
    ] = "",
    limit: Limit = 1000,
    dtype: Dtype = "auto",
    device: Device = "",
) -> None:
    """Fit how a policy's scores grow from the first to the last token of a picture, whatever it shows.

    Use it with debiased(FastV(keep=64), trend="trend.json"), or with
    tokenprune run --policy debiased --set inner=fastv --set trend=trend.json.
    """
    from .calibrate import fit_trend

    pruning = make_policy(policy, dict(map(assignment, fields or [])))
    _writable(out)
    batches = Batches(model, images, prompts, limit=limit, dtype=dtype, device=device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trend = fit_trend(batches.model, pruning, batches, kind=kind, padding=padding or None)
    for one in caught:
        if issubclass(one.category, UserWarning) and "trend" in str(one.message):
            typer.echo(f"warning: {one.message}", err=True)
    trend.save(out)
    numbers = ", ".join(f"{c:.4f}" for c in trend.coefficients)
    typer.echo(
        f"{out}: {kind} ({numbers}) over a picture, R² {trend.facts['r2']:.3f}, {trend.facts['samples']} pictures"
    )


@train.command()
@one_sentence()
def schedule(
    model: Model,
    images: Images,
    prompts: Prompts,
    out: Out = Path("schedule.json"),
    drops: Annotated[int, typer.Option(min=1, help="How many layers drop tokens.")] = 3,
    coverage: Annotated[float, typer.Option(help="Share of the attention that the tokens left should hold.")] = 0.9,
    limit: Limit = 1000,
    dtype: Dtype = "auto",
    device: Device = "",
) -> None:
    """Find the layers where the text changes how much it looks at the picture, and how many tokens it looks at there.

    Use it with AdaptInfer.from_schedule("schedule.json").
    """
    from .calibrate import detect_schedule

    _writable(out)
    batches = Batches(model, images, prompts, limit=limit, dtype=dtype, device=device)
    found = detect_schedule(batches.model, batches, drops=drops, coverage=coverage)
    out.write_text(json.dumps(found, indent=2) + "\n")
    steps = ", ".join(
        f"layer {layer} keeps {keep:.1%}" for layer, keep in zip(found["layers"], found["keeps"], strict=True)
    )
    typer.echo(f"{out}: {steps}, {found['samples']} prompts")


class Batches:
    """A model, and the arguments of its forward for pictures and questions, one prompt with one picture at a time."""

    def __init__(self, model: str, images: Path, prompts: str, *, limit: int, dtype: str, device: str):
        self.pictures, self.prompts, self.limit = _pictures(images), _questions(prompts), limit
        self.model, self.processor = load(model, dtype=dtype, device=device)

    def __iter__(self) -> Iterator[Batch]:
        from rich.console import Console
        from rich.progress import track

        count = min(self.limit, max(len(self.pictures), len(self.prompts)))
        pairs = islice(zip(cycle(self.pictures), cycle(self.prompts)), count)
        console = Console(stderr=True)
        for path, prompt in track(
            pairs, "looking", total=count, console=console, transient=True, disable=not console.is_terminal
        ):
            picture = open_image(path)
            inputs, _ = encode(self.processor, self.model, prompt, [picture])
            yield dict(inputs), [picture.size]


def _pictures(folder: Path) -> list[Path]:
    from PIL import Image

    if not folder.is_dir():
        raise InputError(f"images={str(folder)!r} is no folder: give one with pictures.")
    known = Image.registered_extensions()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not found:
        raise InputError(f"images={str(folder)!r} holds no picture: give a folder with PNG or JPEG files.")
    return found


def _questions(prompts: str) -> list[str]:
    """The lines of a file, or the text itself."""
    try:
        text = Path(prompts).read_text() if Path(prompts).is_file() else None
    except (OSError, ValueError) as error:
        raise InputError(f"prompts={prompts!r} cannot be read ({error}): give a text file, or a question.") from None
    questions = [prompts] if text is None else text.splitlines()
    questions = [line.strip() for line in questions if line.strip()]
    if not questions:
        raise InputError(f"prompts={prompts!r} holds no question: give a line of text for each, or the text of one.")
    return questions


def _writable(out: Path) -> None:
    """Before anything is looked at for long."""
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"out={str(out)!r} cannot be written: give the path of a file in a folder that exists.")

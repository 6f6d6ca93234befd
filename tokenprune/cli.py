"""`tokenprune list | show | run | view | train`, and the commands of installed packages, `eval` among them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated

import typer

from .command import (
    LONGEST_EDGE,
    Device,
    DType,
    End,
    Fields,
    Fps,
    Frames,
    Keep,
    ModelName,
    Per,
    PolicyName,
    Positions,
    ReaderName,
    Size,
    Start,
    budgeted,
    one_sentence,
    prepared,
)
from .describe import default, joined, meanings, needs, paragraphs
from .errors import InputError
from .readers import open_image as open_image  # the demos', too
from .train_cli import train
from .view_cli import view

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Vision-language models that answer with a fraction of their visual tokens.",
)
app.add_typer(train, name="train")


@app.command("list")
@one_sentence()
def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell-style wildcard, such as '*prune*'.")] = "*",
) -> None:
    """List the policies."""
    from rich.console import Console
    from rich.table import Table

    from .registry import get_policy, list_policies

    names = list_policies(pattern)
    if not names:
        raise InputError(f"pattern={pattern!r} matches no policy: known are {', '.join(list_policies())}.")
    table = Table("policy", "stage", "needs", "what it does", box=None, header_style="bold", pad_edge=False)
    for name in names:
        policy = get_policy(name)
        table.add_row(name, policy.stage, needs(policy()), inspect.getdoc(policy).splitlines()[0])
    Console().print(table)


@app.command()
@one_sentence()
def show(policy: Annotated[str, typer.Argument(help="Name of a policy, see `tokenprune list`.")]) -> None:
    """Show one policy: formula, fields with their defaults, source, needs, cost, when to use it and its limits."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .policies import Policy
    from .registry import get_policy

    cls = get_policy(policy)
    console = Console(highlight=False)
    console.print(f"[bold]{policy}[/bold]  [dim]{cls.__module__}.{cls.__qualname__}[/dim]\n")
    for block in paragraphs(cls):
        if not block.startswith("Attributes:"):
            console.print(joined(block) + "\n", markup=False)
    about = meanings(cls)
    table = Table("field", "type", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    common = {field.name for field in dataclasses.fields(Policy)}
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in common):
        table.add_row(field.name, str(field.type), default(field), about.get(field.name, ""))
    console.print(table, markup=False)
    facts = Table("", "", box=None, show_header=False, pad_edge=False)
    made = cls()
    words = {"stage": cls.stage, "needs": needs(made), "prunes": " and ".join(f"{k}s" for k in sorted(made.kinds))}
    words |= {"positions": made.positions, "cost": cls.cost, "when": cls.when, "limits": cls.limits}
    for name, word in words.items():
        facts.add_row(f"[bold]{name}[/bold]", escape(word))
    console.print()
    console.print(facts)


@app.command()
@one_sentence()
def run(
    model: ModelName,
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: Annotated[list[Path] | None, typer.Option(help="Image file; repeat for several.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="Video, GIF or folder of pictures; repeat.")] = None,
    frames: Frames = None,
    fps: Fps = None,
    start: Start = 0.0,
    end: End = None,
    size: Size = LONGEST_EDGE,
    reader: ReaderName = "decord",
    policy: PolicyName = "cdpruner",
    keep: Keep = "",
    per: Per = "image",
    fields: Fields = None,
    positions: Positions = "",
    restore: Annotated[
        bool | None,
        typer.Option("--restore/--no-restore", help="Copies for patches merged in the tower; else as the policy does."),
    ] = None,
    dtype: DType = "auto",
    device: Device = "",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens; else what the model comes with, or 64.")
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Measure the selection, after a first try.")] = False,
) -> None:
    """Answer a question about images or videos with a pruned model, and report what was pruned."""
    from rich.console import Console

    pruning = budgeted(policy, keep, per, fields)
    if not prompt.strip():
        raise InputError("prompt='' is empty: give a question.")
    if not image and not video:
        raise InputError("image and video are both missing: give at least one --image or --video.")
    how = {"frames": frames, "fps": fps, "start": start, "end": end, "size": size, "reader": reader}
    given = pruning, prompt, image or [], video or [], how
    options = {"positions": positions or None, "restore": restore, "timing": timing}
    with prepared(model, *given, dtype=dtype, device=device, **options) as one:
        longest = max_new_tokens or one.model.generation_config.max_new_tokens or 64
        for length in [1, longest] if timing else [longest]:  # the first forward is slow for other reasons
            generated = one.model.generate(**one.inputs, max_new_tokens=length, do_sample=False)
        report, read = one.handle.report(), one.inputs["input_ids"].shape[1]
    answer = one.processor.batch_decode(generated[:, read:], skip_special_tokens=True)[0]
    console = Console(highlight=False, soft_wrap=True)
    console.print(answer.strip(), style="bold", markup=False)
    console.print(str(report), style="dim", markup=False)


app.command()(view)


def complete() -> typer.Typer:
    """All commands: also what packages name in the entry point group `tokenprune.commands`, as functions for typer."""
    for point in sorted(entry_points(group="tokenprune.commands")):
        app.command(point.name)(_loaded(point))
    return app


def main() -> None:
    complete()()


def _loaded(point: EntryPoint) -> Callable:
    """The function, or one that says why there is none: a broken package must not break the other commands."""
    try:
        return point.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"

    @one_sentence()
    def broken() -> None:
        raise InputError(f"command {point.name!r} of {point.value} cannot be loaded ({reason}): reinstall its package.")

    broken.__doc__ = f"(cannot be loaded: {reason})"
    return broken

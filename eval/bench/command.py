"""`tokenprune bench`."""

from __future__ import annotations

import json
import platform
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...command import Device, DType, number, one_sentence
from ...errors import InputError, InvalidArgumentError, TokenPruneError, nearest

if TYPE_CHECKING:
    from ...policies import Policy
    from .build import Subject

POLICIES, KEEPS, BATCHES = ["cdpruner", "divprune", "fastv", "random"], ["0.25"], [1]


@one_sentence()
def bench(
    shape: Annotated[
        str,
        typer.Option(
            help="Random weights of the shape of llava-1.5-7b, llava-next-7b, onevision-7b, internvl3-8b, "
            "qwen2.5-vl-7b or qwen3-vl-8b."
        ),
    ] = "",
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id, instead of a shape.")] = "",
    policy: Annotated[
        list[str] | None,
        typer.Option(help="cdpruner, or 'cdpruner(keep=200)+fastv(keep=0.25)' with fields; repeat for several."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Budget: 64 (tokens) or 0.25 (share; the default); repeat for several.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Samples at once; repeat for several.")] = None,
    scale: Annotated[
        float, typer.Option(help="Share of a shape's heads, layers and words, in (0, 1]; not of the picture.")
    ] = 1.0,
    image: Annotated[Path | None, typer.Option(help="Picture for a checkpoint; else one is drawn at random.")] = None,
    dtype: DType = "auto",
    device: Device = "",
    attention: Annotated[str, typer.Option(help="sdpa, eager, flash_attention_2 or flash_attention_3.")] = "sdpa",
    rounds: Annotated[int, typer.Option(min=1, help="In each of which all rows take a turn.")] = 7,
    text: Annotated[int, typer.Option(min=4, help="Tokens of the prompt beside the picture.")] = 64,
    new: Annotated[int, typer.Option(min=1, help="Tokens of the answer.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch on a CPU; else as many as it likes.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, pixels and words.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for bench_SHAPE.json and .md.")] = Path("runs"),
    plot: Annotated[bool, typer.Option("--plot", help="Draw bench_SHAPE.png, too.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Overwrite what other settings gave in that folder.")] = False,
) -> None:
    """Measure what policies cost and save in time and memory, beside an oracle that chose the tokens in advance.

    Dense model, policies and oracles take turns in every round. Speed does not need trained weights: a shape is a model
    of published sizes with random ones. Files are written after each batch size; those of other settings are refused.
    """
    from .. import specs
    from .build import ATTENTIONS

    if bool(shape) == bool(model):
        raise InvalidArgumentError(
            "shape and model are both " + ("given" if shape else "missing") + ": give one of --shape and --model."
        )
    if model and scale != 1:
        raise InvalidArgumentError(f"scale={scale} is about shapes, and a checkpoint has its own sizes: drop it.")
    if shape and image is not None:
        raise InvalidArgumentError(f"image={str(image)!r} is for checkpoints, a shape has its own picture: drop it.")
    if attention not in ATTENTIONS:
        raise InvalidArgumentError(
            f"attention={attention!r} is not one of {', '.join(ATTENTIONS)}{nearest(attention, ATTENTIONS)}."
        )
    made = [one for one in specs.expanded(policy or POLICIES, [number(one) for one in keep or KEEPS]) if one]
    batches = list(dict.fromkeys(batch or BATCHES))
    writable(out)
    subject = _subject(
        shape, model, scale, image, threads, dtype=dtype, device=device, attention=attention, text=text, seed=seed
    )
    facts = {
        **subject.facts, "text": text, "new": new, "rounds": rounds, "batches": batches, "seed": seed,
        "command": _command(policy or POLICIES, keep or KEEPS, batches, {
            "shape": shape, "model": model, "scale": scale if scale != 1 else "", "image": image or "",
            "dtype": subject.facts["dtype"], "device": subject.model.device.type, "attention": attention,
            "rounds": rounds, "text": text, "new": new, "threads": threads or "", "seed": seed,
        }),
    }  # fmt: skip
    result = {**_machine(subject), **facts, "rows": []}
    if not fresh:
        refuse_others(result, out)
    try:
        for rows in _measured(subject, made, facts):
            result["rows"] += rows
            with suppress(OSError):  # the last write says so
                _saved(result, out)
    except TokenPruneError:
        if result["rows"]:
            written(result, out, plot)
        raise
    written(result, out, plot)


def _subject(shape: str, model: str, scale: float, image: Path | None, threads: int | None, **options: Any) -> Subject:
    import torch

    from .build import from_checkpoint, from_shape

    if threads:
        torch.set_num_threads(threads)
    return from_shape(shape, scale=scale, **options) if shape else from_checkpoint(model, image=image, **options)


def _command(policies: Sequence[str], keeps: Sequence[str], batches: Sequence[int], others: dict[str, Any]) -> str:
    """What gives this again, defaults that depend on the machine written out."""
    options = [("policy", one) for one in policies] + [("keep", one) for one in keeps]
    options += [("batch", one) for one in batches] + [(name, value) for name, value in others.items() if value != ""]
    return " ".join(["tokenprune bench", *(f"--{name} {shlex.quote(str(value))}" for name, value in options)])


def _measured(
    subject: Subject, made: Sequence[Sequence[Policy]], facts: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """Rows of one batch size after the other. Each row is tried with the largest first, so that what cannot be run is
    said before anything is measured; the memory may still be too small for one of the sizes later."""
    from rich.console import Console
    from rich.progress import Progress

    from .build import sentences
    from .measure import Bench
    from .table import cells

    rounds, new = facts["rounds"], facts["new"]
    rig = Bench(subject, new)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        configurations = [[], *made]
        if len(facts["batches"]) > 1:  # what does not fit into the memory is met before anything is measured
            with sentences(f"batch={max(facts['batches'])}"):
                for one in configurations:
                    rig.probe(list(one), max(facts["batches"]))
        for size in facts["batches"]:
            with sentences(f"batch={size}"):
                rows = [rig.probe(list(one), size) for one in configurations]
                calls = sum(3 if row.oracle else 2 for row in rows)
                task = bar.add_task(f"batch {size}", total=calls * (rounds + 1))
                rig.measure(rows, rounds, lambda task=task: bar.advance(task))
            yield cells(rows, new)


def _machine(subject: Subject) -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    from ..clock import machine

    device = subject.model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    versions = {one: version(one) for one in ("torch", "transformers")} | {"tokenprune": version("tokenprune-vlm")}
    if device.type == "cuda":
        versions["cuda"] = torch.version.cuda
    return {"device": name, "versions": versions | {"python": platform.python_version()}}


def writable(folder: Path) -> None:
    """Makes the folder.

    Raises:
        InputError: it is a file, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"out={str(folder)!r} cannot be written to ({error.strerror}): give another folder.") from None


def refuse_others(result: dict[str, Any], out: Path) -> None:
    """Settings are the machine and the options of the command, not the versions: those may be measured again.

    Raises:
        InputError: the file that this result would replace is of other settings, or no result.
    """
    file = out / f"{_name(result)}.json"
    try:
        earlier = settings(json.loads(file.read_text()))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"out={str(out)!r} holds a {file.name} that is no result of tokenprune bench: give another --out, or "
            "--fresh to overwrite it."
        ) from None
    own = settings(result)
    for name in [*own, *earlier]:
        if own.get(name) != earlier.get(name):
            was, now = (one.get(name, "default") for one in (earlier, own))
            raise InputError(
                f"out={str(out)!r} holds a {file.name} with {name}={was}, and here it is {now}: give another --out, or "
                "--fresh to overwrite it."
            )


def settings(result: dict[str, Any]) -> dict[str, str]:
    """Option -> values of the command that gave the result, and the machine."""
    words, found = shlex.split(result["command"])[2:], {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        found.setdefault(option.removeprefix("--"), []).append(value)
    return {name: " ".join(values) for name, values in found.items()} | {"machine": result["device"]}


def _name(result: dict[str, Any]) -> str:
    return f"bench_{result['shape']}"


def _saved(result: dict[str, Any], out: Path) -> None:
    """JSON and Markdown of what is there so far."""
    from .. import files
    from .table import markdown

    files.replaced(out / f"{_name(result)}.json", files.written(result))
    files.replaced(out / f"{_name(result)}.md", markdown(result))


def written(result: dict[str, Any], out: Path, plot: bool) -> None:
    """Writes JSON, Markdown and perhaps the plot.

    Raises:
        InputError: the disk is full or gone; the table is on the console nonetheless.
    """
    from ..files import publish
    from ..files import written as as_json
    from .plot import draw
    from .table import markdown

    name, text = _name(result), markdown(result)
    try:
        publish(out, name, as_json(result), text)
        if plot:
            draw(result, out / f"{name}.png")
    except OSError as error:
        typer.echo(text)
        raise InputError(
            f"out={str(out)!r} could not take all results ({error.strerror or error}): the table above is what was "
            "measured; make room and run again."
        ) from None
    typer.echo(f"wrote {out / name}.json, .md" + (" and .png" if plot else ""), err=True)

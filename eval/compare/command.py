"""`tokenprune compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...command import one_sentence
from ...errors import InputError, InvalidArgumentError, nearest

if TYPE_CHECKING:
    from .benches import Bench
    from .runs import Run

WRITTEN = (".json", ".md")


@one_sentence()
def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B...",
            help="Folders of `tokenprune eval` (of one run, or of several), and JSONs of `tokenprune bench`. The first "
            "run, or the dense one of a first folder of several, is what the others are compared to.",
        ),
    ],
    metric: Annotated[str, typer.Option(help="Instead of the first metric of each task that has it.")] = "",
    by: Annotated[str, typer.Option(help="Field of the documents that says the type of a question.")] = "",
    time: Annotated[str, typer.Option(help="What a speed-up is of, beside runs: ttft or end_to_end.")] = "ttft",
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size of the times; the least there is.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to draw: metric over tokens kept, or over speed-up of the first bench.")
    ] = None,
    out: Annotated[list[Path] | None, typer.Option(help="File to write, .json or .md; may be given twice.")] = None,
) -> None:
    """Put runs beside each other, document by document, and beside what they cost in time."""
    from ..files import shown
    from .benches import TIMES

    if time not in TIMES:
        raise InvalidArgumentError(f"time={time!r} is not one of {', '.join(TIMES)}{nearest(time, TIMES)}.")
    for file in out or []:
        _named("out", file, WRITTEN)
    if plot:
        _named("plot", plot, (".png",))
    runs, benches = _read(paths)
    if plot and not runs:
        raise InvalidArgumentError(f"plot={str(plot)!r} has no run to draw: give folders of `tokenprune eval`, too.")
    text, data, draw = _compared(runs, benches, metric=metric, by=by, time=time, batch=batch)
    shown(text)
    try:
        _write(out or [], text, data)
        if plot:
            draw(plot)
    except OSError as error:
        raise InputError(
            f"{error.filename or 'a file'!r} could not be written ({error.strerror or error}): the tables above are "
            "all there is; make room and run this again."
        ) from None


def _named(option: str, file: Path, suffixes: Sequence[str]) -> None:
    if file.suffix not in suffixes:
        raise InvalidArgumentError(f"{option}={str(file)!r} does not end in {' or '.join(suffixes)}: name it so.")


def _read(paths: Sequence[Path]) -> tuple[list[Run], list[Bench]]:
    """Everything that the paths hold.

    Raises:
        InputError: one holds nothing that can be compared, or comes twice; or there is but one thing.
    """
    from . import benches, runs

    found: list[Run] = []
    files: list[Bench] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{str(path)!r} does not exist: give a folder of `tokenprune eval`, or a JSON of `bench`.")
        if path.is_dir():
            found += runs.found(path)
        else:
            files.append(benches.read(path))
    places = [one.resolve() for one in [*(run.folder for run in found), *(bench.file for bench in files)]]
    for place in places:
        if places.count(place) > 1:
            raise InputError(f"{str(place)!r} is given twice: give each once.")
    if len(places) < 2:
        raise InputError(f"{' '.join(map(str, paths))} is one thing alone: give another to compare it with.")
    return found, files


def _compared(
    runs: list[Run], files: list[Bench], *, metric: str, by: str, time: str, batch: int | None
) -> tuple[str, dict[str, Any], Any]:
    """Markdown, data for JSON, and what draws into a file."""
    from . import benches, drawing, measures, tables

    parts, data = [], {}
    points: Sequence[Any] = ()
    comparison = None
    if runs:
        comparison = measures.compared(runs, metric=metric, by=by)
        parts.append(tables.markdown(comparison))
        data |= tables.data(comparison)
    if files:
        text, notes = benches.beside(files)
        parts += [one for one in (text, *notes) if one]
        data["benches"] = [{"file": str(one.file), **one.facts, "rows": one.rows} for one in files]
        data["bench_notes"] = notes
    for file in files if runs else []:
        size = benches.chosen(file, batch)
        found, notes = benches.joined(comparison, file, size, time)
        points = points or found
        parts += [benches.table(comparison, found, file, size, time), *notes]
        data.setdefault("pareto", []).append(benches.data(found, comparison, file, size, time) | {"notes": notes})
    text = "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
    return text, data, lambda file: drawing.draw(comparison, file, points, time)


def _write(files: Sequence[Path], text: str, data: dict[str, Any]) -> None:
    from ..files import replaced

    for file in files:
        replaced(file, text if file.suffix == ".md" else json.dumps(data, indent=1, ensure_ascii=False) + "\n")

"""A base and tasks by name, as commands are told of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError, InvalidArgumentError

if TYPE_CHECKING:
    from .run import Session

EMBEDDED = "embedded"

Base = Annotated[
    str, typer.Option(help="Model of lmms-eval (llava_hf, qwen2_5_vl, ...), or 'embedded' for the models in here.")
]
BaseArgs = Annotated[
    str, typer.Option(help="Its arguments, as --model_args of lmms-eval: pretrained=llava-hf/llava-1.5-7b-hf.")
]
Tasks = Annotated[str, typer.Option(help="Tasks of lmms-eval, joined by commas.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Of the base, where it takes any.")]
IncludePath = Annotated[list[Path] | None, typer.Option(help="Folder with more tasks; repeat for several.")]
Seed = Annotated[int, typer.Option(help="Of whatever draws.")]


def names_of(text: str) -> list[str]:
    """Of tasks, as --tasks has them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def arguments_of(text: str) -> dict[str, Any]:
    """Those of a base, as lmms-eval reads them."""
    with installed():
        from lmms_eval.utils import simple_parse_args_string
    try:
        return simple_parse_args_string(text)
    except ValueError:
        raise InvalidArgumentError(f"base_args={text!r} cannot be read: write name=value, joined by commas.") from None


def sessions(
    base: str,
    arguments: dict[str, Any],
    names: list[str],
    paths: Sequence[Path],
    out: Path,
    count: int | None,
    **options: Any,
) -> Iterator[tuple[Path, Session, list[str]]]:
    """(folder, model, tasks that it is asked): one, but for the embedded models, of which each has tasks of its own.

    Args:
        count: documents of the tasks in here that are needed, None for all.
        options: of `Session`.
    """
    with installed():
        from ..tasks import build, embedded
        from .run import Session

    if base != EMBEDDED:
        yield out, Session(base, arguments, include_path=paths, **options), names
        return
    if arguments:
        raise InvalidArgumentError(f"base_args={arguments} are none of the embedded models: drop them.")
    models = embedded.chosen(names)
    folder = build.built(out / "tasks", names, count=count)
    for model, some in models.items():
        where = out / model if len(models) > 1 else out
        given = embedded.EMBEDDED[model]
        yield where, Session(embedded.BASE, given, include_path=[folder, *paths], defaults=False, **options), some


@contextmanager
def installed() -> Iterator[None]:
    """Within, a missing package becomes one sentence."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{error.name or error} is not installed: pip install tokenprune-vlm[eval].") from None


def quiet() -> None:
    """lmms-eval logs every step: warnings alone are left."""
    with installed():
        from loguru import logger
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="warning: {message}")

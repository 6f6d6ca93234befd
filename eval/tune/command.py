"""`tokenprune tune`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...command import one_sentence
from ...errors import InputError, InvalidArgumentError
from ..lmms.opening import (
    Base,
    BaseArgs,
    BatchSize,
    IncludePath,
    Seed,
    Tasks,
    arguments_of,
    installed,
    names_of,
    quiet,
    sessions,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ..lmms.run import Session
    from .search import Outcome, Plan
    from .state import State

NOTHING = 1  # exit code
TABLE = 120  # columns, where the output is no terminal


@one_sentence()
def tune(
    base: Base = "",
    base_args: BaseArgs = "",
    tasks: Tasks = "",
    max_drop: Annotated[
        str, typer.Option(help="Allowed loss: 1% of the dense score, or 0.01 in the metric's own units.")
    ] = "1%",
    metric: Annotated[str, typer.Option(help="Whose mean over documents counts; else each task's first.")] = "",
    policy: Annotated[
        list[str] | None,
        typer.Option(help="cdpruner, or 'tome(r=8)+cdpruner' with fields; repeat. Else training-free ones."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Budget to try: 64 (tokens) or 0.25 (share); repeat. Else six from 0.5 to 0.05."),
    ] = None,
    compose: Annotated[
        bool, typer.Option("--compose", help="Also each policy behind tome, and in front of fastv.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Calibration documents: the first of each task.")] = 256,
    heldout: Annotated[int, typer.Option(min=1, help="Documents behind these, for the check.")] = 256,
    confidence: Annotated[
        float | None,
        typer.Option(help="Ask that the loss be shown to be allowed, such as 0.95; else its estimate counts."),
    ] = None,
    timed: Annotated[int, typer.Option(min=1, help="Documents of each task that times are measured on.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Of every time measured.")] = 7,
    batch_size: BatchSize = 1,
    include_path: IncludePath = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for tune.json and the answers.")] = Path("tuned"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the search that is there.")] = False,
) -> None:
    """Find the fastest way to prune a model whose loss on a task is allowed, and check it on held-out documents.

    Run it again after it was stopped: it goes on from there. Exit code 1: nothing is faster within the allowed loss.
    """
    import torch
    from rich.console import Console

    from .candidates import KEEPS, POLICIES, candidates
    from .loss import MaxDrop
    from .search import Plan
    from .state import State

    names = names_of(tasks)
    for name, given, such in (("tasks", names, "shapes"), ("base", base, "llava_hf, or embedded")):
        if not given:
            raise InvalidArgumentError(f"{name}='' is empty: give --{name}, such as {such}.")
    if confidence is not None and not 0.5 < confidence < 1:
        raise InvalidArgumentError(f"confidence={confidence} is not between 0.5 and 1: give such as 0.95, or none.")
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    if several or torch.distributed.is_torchelastic_launched():
        raise InputError("tune runs in one process: start it without accelerate launch or torchrun.")
    plan = Plan(samples, heldout, MaxDrop.read(max_drop), confidence)
    texts = candidates(policy or POLICIES, keep or KEEPS, compose=compose)
    settings = {
        "base": base, "base_args": base_args, "tasks": names, "max_drop": max_drop, "metric": metric or None,
        "samples": samples, "heldout": heldout, "confidence": confidence, "timed": timed, "rounds": rounds,
        "batch_size": batch_size, "seed": seed, "candidates": texts,
        "include_path": [str(path.resolve()) for path in include_path or []], "versions": _versions(),
    }  # fmt: skip
    state = State(out, settings, fresh=fresh)
    with ExitStack() as stack:
        session, names = _session(base, base_args, names, include_path or [], out, samples + heldout, batch_size, seed)
        stack.callback(session.close)
        session.check(names)
        outcome = found(session, names, texts, plan, state, metric or None, timed, rounds, Console(file=sys.stderr))
    if not told(outcome, state, plan, Console(highlight=False)):
        raise typer.Exit(NOTHING)


def _versions() -> dict[str, str]:
    with installed():
        from ..lmms.run import versions
    return versions()


def _session(
    base: str, base_args: str, names: list[str], paths: list[Path], out: Path, count: int, batch_size: int, seed: int
) -> tuple[Session, list[str]]:
    """The one model that has all these tasks."""
    quiet()
    given = {"batch_size": batch_size, "seed": seed}
    several = list(sessions(base, arguments_of(base_args), names, paths, out, count, **given))
    if len(several) > 1:
        for _, session, _ in several:
            session.close()
        raise InputError(f"tasks={','.join(names)!r} are for {len(several)} models: give those of one.")
    return several[0][1:]


def found(
    session: Session,
    tasks: list[str],
    texts: list[str],
    plan: Plan,
    state: State,
    metric: str | None,
    timed: int,
    rounds: int,
    console: Console,
) -> Outcome:
    """Tries, times and races the candidates.

    Raises:
        InputError: the model can serve none of them, and as `search`.
    """
    from . import backend
    from .search import search
    from .state import RUNS

    with _progress(console) as progress:
        bar = progress.add_task("timing", total=None)
        if not state.times:
            calls = backend.seen(session, tasks, timed)
            refused = backend.served(session, texts, calls[0])
            if len(refused) == len(texts):
                raise InputError(f"policy: the model can serve none of {len(texts)} candidates: {refused[texts[0]]}")
            left = [text for text in texts if text not in refused]
            progress.update(bar, total=len(left))
            told = lambda some: progress.advance(bar, len(some))  # noqa: E731
            state.measured(backend.times(session, left, calls, rounds, told), refused)
        progress.update(bar, total=1, completed=0)

        def asked(text: str, count: int) -> None:
            what = "the dense model" if text == backend.DENSE else text
            progress.update(bar, description=f"{what}: {count} documents")

        def noted(outcome: Outcome) -> None:
            progress.update(bar, total=len(outcome.rows), completed=sum(bool(row.decision) for row in outcome.rows))

        evaluate = backend.evaluated(session, tasks, metric, state.folder / RUNS, asked)
        return search(state.times, state.remembering(evaluate), plan, state.noting(noted))


def _progress(console: Console) -> Progress:
    """Candidates decided."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def told(outcome: Outcome, state: State, plan: Plan, console: Console) -> bool:
    """Prints table and verdict; whether there is a line to paste."""
    from . import verdict

    if not console.is_terminal:
        console.width = TABLE
    console.print(verdict.table(outcome))
    for text in verdict.refusals(state.refused) + verdict.sentences(outcome, plan):
        console.print(text, markup=False, soft_wrap=True)
    if outcome.chosen is None:
        typer.echo(f"error: {verdict.obstacle(outcome, plan)}", err=True)
        return False
    console.print(verdict.line(outcome), style="bold", markup=False, soft_wrap=True)
    return True

"""`tokenprune eval`: policies on the tasks of lmms-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...command import number, one_sentence
from ...errors import InvalidArgumentError
from .opening import Base, BaseArgs, BatchSize, IncludePath, Seed, Tasks, arguments_of, names_of, quiet, sessions


@one_sentence()
def evaluate(
    base: Base = "",
    base_args: BaseArgs = "",
    tasks: Tasks = "",
    policy: Annotated[
        list[str] | None,
        typer.Option(help="cdpruner, or 'tome(r=8)+cdpruner(keep=0.25)' with fields; repeat for several."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Budget: 64 (tokens) or 0.25 (share; the default); repeat for several."),
    ] = None,
    per: Annotated[str, typer.Option(help="What the budget is counted over: image, crop, frame or prompt.")] = "image",
    positions: Annotated[str, typer.Option(help="Of kept tokens: original or compact; else as each policy does.")] = "",
    recipe: Annotated[
        str,
        typer.Option(help="What a paper published, instead of base, tasks and policies: a name, or a YAML file."),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look up all names of the recipe, print its command, and stop.")
    ] = False,
    dense: Annotated[bool, typer.Option(help="Also the model as it is, which the others are compared to.")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many documents of each task.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many documents at the beginning.")] = 0,
    batch_size: BatchSize = 1,
    include_path: IncludePath = None,
    out: Annotated[Path, typer.Option(help="Folder for a folder of each configuration, table and plot.")] = Path(
        "runs"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the answers that are there.")] = False,
    plot: Annotated[bool, typer.Option(help="Draw accuracy against tokens into OUT/compare.png.")] = True,
    seed: Seed = 0,
) -> None:
    """Answer tasks of lmms-eval with pruned models, prompted as the base is, and compare them with the dense one.

    A run that was stopped goes on where it was. Under `accelerate launch -m tokenprune eval ...` processes share the
    documents.
    """
    from .. import recipes, specs
    from ..files import shown

    names = names_of(tasks)
    arguments = arguments_of(base_args)
    if dry_run and not recipe:
        raise InvalidArgumentError("dry_run=True is about a recipe: give --recipe.")
    paper = None
    if recipe:
        if base or names or policy or keep:
            raise InvalidArgumentError(
                f"recipe={recipe!r} says base, tasks, policies and budgets: drop yours, or --recipe."
            )
        paper = recipes.read(recipe)
        paper = replace(paper, base_args=paper.base_args | arguments)
        recipes.check(paper)
        if dry_run:
            typer.echo("\n".join(recipes.commands(paper)))
            return
        base, arguments, names = paper.base, paper.base_args, paper.tasks
        policy = [row.policy for row in paper.rows]
    if not names:
        raise InvalidArgumentError("tasks='' is empty: give --tasks, names joined by commas.")
    if not base:
        raise InvalidArgumentError("base='' is empty: give --base, such as llava_hf, or embedded.")
    if (keep or per != "image") and all(map(specs.budgeted, policy or [])):
        raise InvalidArgumentError(f"keep={keep}, per={per!r} serve no policy: each states its own budget, or is none.")
    keeps = [number(one) for one in keep or ["0.25"]]
    made = specs.expanded(policy or [], keeps, per if per != "image" else None)
    configurations = ([[]] if dense else []) + made
    if not configurations:
        raise InvalidArgumentError("policy=None with --no-dense leaves nothing to run: give --policy.")
    quiet()
    count = None if limit is None else offset + limit
    given = {"batch_size": batch_size, "seed": seed}
    for where, session, some in sessions(base, arguments, names, include_path or [], out, count, **given):
        try:
            session.check(some)
            for one in configurations:
                session.serves(one, positions=positions or None)
            folders = []
            for one in configurations:
                folder = where / specs.slug(specs.text(one))
                options = {"positions": positions or None, "fresh": fresh}
                if session.evaluate(one, some, folder, limit=limit, offset=offset, **options) is not None:
                    folders.append(folder)
        finally:
            session.close()
        if folders:
            _compared(folders, where, plot)
        if folders and paper:
            shown(recipes.table(recipes.compared(paper, recipes.measured(where))))


def _compared(folders: Sequence[Path], where: Path, plot: bool) -> None:
    """Table on the console and in the folder, and the plot."""
    from .. import compare
    from ..files import replaced, shown
    from .journal import writing

    runs = [compare.read(folder) for folder in folders]
    text = compare.table(runs)
    shown(text)
    with writing(where):
        replaced(where / "compare.md", text)
        if plot:
            compare.plot(runs, where / "compare.png")

"""Accuracy of every policy on held-out clips: `python -m tokenprune.eval.video_accuracy [--clips 1000]`.

With the embedded video model. Every row is written as soon as it is measured, with its answers; a run goes on where the
last one stopped, and measures anew what is not of this setup.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from . import shapes, video_pareto
from .accuracy import Questions, answers, figures, setup
from .asking import Stacked, Way
from .files import packed, read, replaced, reusable, unpacked, written
from .video_asking import check_against_generate, encoded
from .video_rows import DENSE, Row, video_rows

CLIPS = "clips"


@torch.inference_mode()
def measure(
    samples: list[shapes.VideoSample],
    rows: dict[str, Row],
    *,
    only: list[str] | None,
    earlier: dict | None,
    save: Callable[[dict], None],
) -> dict:
    """Every row as plain numbers; `save` gets the result whenever there is another one.

    Args:
        samples: clips with their questions.
        rows: of the table, see `video_rows`.
        only: names of rows or policies; of the others, only what `earlier` holds comes into the result.
        earlier: a result whose rows are taken over where they are of this setup and configuration.
        save: called with the result.
    """
    model, processor = shapes.load_video()
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("encoding clips", total=len(samples))
        policies = [one for row in rows.values() for one in row.policies]

        def batches(model, processor, samples):
            return encoded(model, processor, samples, policies)

        questions = Questions(model, processor, {CLIPS: samples}, lambda n: bar.advance(task, n), batches)
        check_against_generate(model, processor, questions.batches[0])
        facts = setup(questions, shapes.VIDEO_CHECKPOINT)
        del facts["machine"]  # no times here
        result = {**facts, "rows": []}
        texts = {DENSE: DENSE, **{name: row.text for name, row in rows.items()}}
        known = reusable(earlier, result, texts, {DENSE: (1.0,), **{name: row.keeps for name, row in rows.items()}})
        missing = [name for name in rows if name not in known and (only is None or {name, rows[name].name} & set(only))]
        missing = [DENSE] * (DENSE not in known) + missing
        task = bar.add_task("measuring rows", total=len(missing))
        for name in missing:
            bar.update(task, description=name)
            known[name] = _cells(name, rows.get(name), texts[name], model, processor, questions)
            result["rows"] = [cell for row in (DENSE, *rows) for cell in known.get(row, [])]
            compare(result, rows, questions)
            save(result)
            bar.advance(task)
    result["rows"] = [cell for row in (DENSE, *rows) for cell in known.get(row, [])]
    compare(result, rows, questions)
    save(result)
    return result


def _cells(name: str, row: Row | None, text: str, model, processor, questions: Questions) -> list[dict]:
    """What one row answers at each of its budgets; None is the dense model."""
    ways = [Way(model, processor)] if row is None else row.ways(model, processor)
    found = answers(ways, (1.0,) if row is None else row.keeps, questions.batches)
    return [
        {
            "row": name,
            "policy": DENSE if row is None else row.name,
            "group": DENSE if row is None else row.group,
            "configuration": text,
            "keep": keep,
            "tokens": round(kept, 2),
            "right": packed(right),
            **(ways[0].facts(keep) if isinstance(ways[0], Stacked) else {}),
        }
        for keep, (right, kept) in found.items()
    ]


def compare(result: dict, rows: dict[str, Row], questions: Questions) -> None:
    """Figures of all cells from their answers, with the differences to others at the same budget that are there."""
    right = [unpacked(cell["right"], len(questions)) for cell in result["rows"]]
    known = {(cell["row"], cell["keep"]): mine for cell, mine in zip(result["rows"], right, strict=True)}
    for cell, mine in zip(result["rows"], right, strict=True):
        against = {} if cell["row"] == DENSE else rows[cell["row"]].against
        cell["against"] = {key: row for key, row in against.items() if row != cell["row"]}
        others = {k: known[row, cell["keep"]] for k, row in cell["against"].items() if (row, cell["keep"]) in known}
        cell["sets"] = figures(mine, others, questions)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.video_accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000, help="held-out clips, one question each")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the random policies")
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row or policy; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of video_accuracy.*")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the folder holds already")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--plot-only", action="store_true", help="tables and plot of the video_accuracy.json there")
    given = parser.parse_args()
    for name in ("clips", "seeds", "threads"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} {getattr(given, name)} is below 1")
    rows = video_rows(1)
    for name in given.row or []:
        if name not in {*rows, *(row.name for row in rows.values())}:
            parser.error(f"--row {name} is none: rows are {'; '.join(rows)}")
    if given.plot_only and read(given.out / "video_accuracy.json") is None:
        parser.error(f"--plot-only needs {given.out / 'video_accuracy.json'}: leave the option out to measure")
    return given


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    file = given.out / "video_accuracy.json"

    def save(result: dict) -> None:
        replaced(file, written(result))

    result = read(file)
    if not given.plot_only:
        samples = list(shapes.held_out_clips(given.clips))
        earlier = None if given.fresh else result
        result = measure(samples, video_rows(given.seeds), only=given.row, earlier=earlier, save=save)
    Console().print(Markdown(video_pareto.write(result, given.out)))


if __name__ == "__main__":
    main()

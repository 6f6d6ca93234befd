"""Do stages add up? `python -m tokenprune.eval.vision_composed [--samples N]`.

With the embedded models: merging inside the tower, a policy in front of the language model and one inside of it, alone
and together, at equal FLOPs of all of it: tower, prefill and a few steps of decoding, without the projector. How a row
of several stages shares its budget among them is chosen by accuracy on training samples, cell by cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from transformers import PreTrainedModel, ProcessorMixin

from .. import ToMe, VisionPolicy, wrap
from . import shapes, vision_pareto
from .accuracy import Questions, answers, figures, setup
from .asking import Batch, Way, encoded
from .files import at_least, packed, publish, read, replaced, reusable, unpacked, written
from .video_asking import encoded as encoded_clips
from .vision_plans import CONTROL, Costs, Plan, Row, composed_rows

DENSE = "dense"
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of the dense FLOPs


class Mixed(Way):
    """Policies of several stages at once.

    Attributes:
        plans: budget -> what runs.
        spent: budget -> FLOPs of all batches that `kept` was asked about, dense and pruned.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, plans: dict[float, Plan], costs: Costs):
        super().__init__(model, processor)
        self.plans, self.costs = plans, costs
        self.spent = dict.fromkeys(plans, (0.0, 0.0))

    @contextmanager
    def at(self, keep: float, batch: Batch) -> Iterator[None]:
        plan = self.plans[keep]
        self._keep = keep
        with wrap(self.model, list(plan.policies), restore=plan.restore) as self._handle:
            yield

    def encoded(self, batch: Batch, keep: float) -> dict[str, Any]:
        """What was encoded before serves where the tower is as it was."""
        inside = any(isinstance(one, VisionPolicy) for one in self.plans[keep].policies)
        return batch.given() if inside else super().encoded(batch, keep)

    def kept(self, batch: Batch) -> float:
        """Visual tokens that the first layer of the decoder reads, per sample."""
        report = self._handle.report()
        self.spent[self._keep] = tuple(map(sum, zip(self.spent[self._keep], self.costs.of(report), strict=True)))
        gone = sum(dense - pruned for dense, pruned in report.lengths)
        return self.costs.visual - gone / len(report.lengths)


@dataclass
class Bench:
    """One of the embedded models with what it is asked.

    Attributes:
        name: of the set.
        load: the model and its processor.
        samples: (split, how many) -> samples.
        encode: makes batches of them.
        handed_on: see `Row.plans`.
        checkpoint: folder of the model.
        counts: held-out samples that rows are measured on, and training samples that plans are chosen by.
    """

    name: str
    load: Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
    samples: Callable[[str, int], list]
    encode: Callable[..., Iterator[Batch]]
    handed_on: bool
    checkpoint: Path
    counts: tuple[int, int]


def benches() -> dict[str, Bench]:
    return {
        "images": Bench(
            name="scenes",
            load=shapes.load,
            samples=lambda split, count: list(shapes.held_out(count, split=split)),
            encode=encoded,
            handed_on=True,
            checkpoint=shapes.CHECKPOINT,
            counts=(2400, 400),
        ),
        "videos": Bench(
            name="clips",
            load=shapes.load_video,
            samples=lambda split, count: list(shapes.held_out_clips(count, split=split)),
            encode=encoded_clips,
            handed_on=False,
            checkpoint=shapes.VIDEO_CHECKPOINT,
            counts=(400, 100),
        ),
    }


@torch.inference_mode()
def priced(model: PreTrainedModel, batch: Batch) -> Costs:
    """From a report that shortens the tower a little."""
    with wrap(model, ToMe(r=1), restore=True) as handle:
        model(**batch.given(), logits_to_keep=1)
        report = handle.report()
    count = len(report.lengths)
    return Costs(
        shape=report.shape, tower=report.towers[0], towers=len(report.towers) // count, visual=report.total // count
    )


def chosen(row: Row, most: float, costs: Costs, bench: Bench, model, processor, batches: list[Batch]) -> dict | None:
    """The plan of a row for a budget that answers most training questions, the first of equals; None without any."""
    plans = list(row.plans(most, costs, handed_on=bench.handed_on))
    if len(plans) < 2:
        return {"plan": plans[0], "tried": 1} if plans else None
    scores = []
    for plan in plans:
        right, _ = answers([Mixed(model, processor, {most: plan}, costs)], (most,), batches)[most]
        scores.append(float(right.mean()))
    best = scores.index(max(scores))
    return {"plan": plans[best], "tried": len(plans), "in_training": round(scores[best], 4)}


@torch.inference_mode()
def measure(
    bench: Bench,
    tried: dict[str, list[Row]],
    *,
    samples: int,
    tuning: int,
    only: list[str] | None,
    earlier: dict | None,
    save: Callable[[dict], None],
) -> dict:
    """Every row as plain numbers; `save` gets the result whenever there is another one.

    Args:
        bench: what is asked.
        tried: the rows.
        samples, tuning: held-out samples that rows are measured on, and training samples that plans are chosen by.
        only: names of rows; of the others, only what `earlier` holds comes into the result.
        earlier: a result whose rows are taken over where they are of this setup and configuration.
        save: called with the result.
    """
    model, processor = bench.load()
    columns = (MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*Progress.get_default_columns(), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=samples + tuning)
        advance = lambda n: bar.advance(task, n)  # noqa: E731
        questions = Questions(
            model, processor, {bench.name: bench.samples("test", samples)}, advance, encoded=bench.encode
        )
        training = Questions(
            model, processor, {bench.name: bench.samples("train", tuning)}, advance, encoded=bench.encode
        )
        costs = priced(model, questions.batches[0])
        facts = setup(questions, bench.checkpoint)
        del facts["machine"]  # no times here
        tower = costs.inside(None) / costs.dense
        result = {**facts, "tuning": tuning, "visual": costs.visual, "tower": round(tower, 4), "rows": []}
        fits = {
            name: tuple(b for b in BUDGETS if next(several[0].plans(b, costs, handed_on=bench.handed_on), None))
            for name, several in tried.items()
        }
        texts = {DENSE: DENSE, **{name: "; ".join(row.text() for row in several) for name, several in tried.items()}}
        known = reusable(earlier, result, texts, {DENSE: (1.0,), **fits})
        missing = [name for name in (DENSE, *tried) if name not in known and (not only or name in (DENSE, *only))]
        task = bar.add_task("rows", total=len(missing))
        for name in missing:
            bar.update(task, description=name)
            if name == DENSE:
                cells = [{"keep": 1.0, "tokens": costs.visual, "flops": 1.0}]
                right = {1.0: answers([Way(model, processor)], (1.0,), questions.batches)[1.0][0]}
            else:
                cells, right = _cells(tried[name], fits[name], costs, bench, model, processor, questions, training)
            texts_of = {"row": name, "configuration": texts[name]}
            known[name] = [{**texts_of, **cell, "right": packed(right[cell["keep"]])} for cell in cells]
            result["rows"] = [cell for row in (DENSE, *tried) for cell in known.get(row, [])]
            compare(result, questions, tried)
            save(result)
            bar.advance(task)
    result["rows"] = [cell for row in (DENSE, *tried) for cell in known.get(row, [])]
    compare(result, questions, tried)
    save(result)
    return result


def _cells(several, budgets, costs: Costs, bench: Bench, model, processor, questions: Questions, training: Questions):
    """What one row answers at each of its budgets: cells, and budget -> right."""
    picked = [{b: chosen(row, b, costs, bench, model, processor, training.batches) for b in budgets} for row in several]
    ways = [Mixed(model, processor, {b: one[b]["plan"] for b in budgets}, costs) for one in picked]
    found = answers(ways, budgets, questions.batches)
    cells = []
    for budget in budgets:
        dense, pruned = ways[0].spent[budget]
        one = picked[0][budget]
        cell = {"keep": budget, "tokens": round(found[budget][1], 2), "flops": round(pruned / dense, 5)}
        cells.append(cell | one | {"plan": str(one["plan"])})
    return cells, {budget: found[budget][0] for budget in budgets}


def compare(result: dict, questions: Questions, tried: dict[str, list[Row]]) -> None:
    """Figures of all cells from their answers; rows of several stages against the best of a single one there, which is
    the best of these very answers, and so rather too good."""
    right = [unpacked(cell["right"], len(questions)) for cell in result["rows"]]
    known = {(cell["row"], cell["keep"]): mine for cell, mine in zip(result["rows"], right, strict=True)}
    for cell, mine in zip(result["rows"], right, strict=True):
        others, name = {}, cell["row"]
        if name in tried and tried[name][0].several:
            alone = {
                row: answered
                for (row, keep), answered in known.items()
                if keep == cell["keep"] and row in tried and row != CONTROL and not tried[row][0].several
            }
            if alone:
                cell["best_alone"] = max(alone, key=lambda row: alone[row].mean())
                others["over_best"] = alone[cell["best_alone"]]
        elif name != CONTROL and (CONTROL, cell["keep"]) in known and tried.get(name, [Row()])[0].tower:
            others["over_random"] = known[CONTROL, cell["keep"]]
        cell["sets"] = figures(mine, others, questions)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.vision_composed", description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=benches(), help="only this one")
    parser.add_argument(
        "--samples", type=int, help="held-out ones, a question each; 2400 scenes, 400 clips unless given"
    )
    parser.add_argument("--tuning", type=int, help="training ones that plans are chosen by; 400 and 100 unless given")
    parser.add_argument("--seeds", type=int, default=3, help="of random policies")
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row; may be repeated")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of vision_composed_*.*")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the folder holds already")
    parser.add_argument("--plot-only", action="store_true", help="tables and plot of the results that are there")
    given = parser.parse_args()
    at_least(parser, given, samples=1, tuning=1, seeds=1, threads=1)
    return given


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    for name, bench in benches().items():
        if given.model and name not in given.model:
            continue
        file = given.out / f"vision_composed_{name}.json"
        result = read(file)
        if not given.plot_only:
            result = measure(
                bench,
                composed_rows(given.seeds, handed_on=bench.handed_on),
                samples=given.samples or bench.counts[0],
                tuning=given.tuning or bench.counts[1],
                only=given.row,
                earlier=None if given.fresh else result,
                save=lambda result, file=file: replaced(file, written(result)),
            )
        if result is not None:
            publish(given.out, f"vision_composed_{name}", written(result), vision_pareto.composed_tables(result))
    vision_pareto.plot(given.out)


if __name__ == "__main__":
    main()

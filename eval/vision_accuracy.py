"""Accuracy of vision transformers with fewer tokens: `python -m tokenprune.eval.vision_accuracy [--samples N]`.

Of the image and the clip classifier trained here, on held-out samples, beside estimated FLOPs and throughput. Every row
is written as soon as it is measured, with its answers; a run goes on where the last one stopped, and measures anew what
is not of this setup.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from torch import Tensor, nn

from .. import VisionPolicy, wrap
from ..report import TowerReport
from . import shapes, vision_pareto
from .accuracy import figures, setup
from .clock import in_turns, ratio
from .files import at_least, packed, publish, read, replaced, reusable, unpacked, written
from .vision_costs import probed, share
from .vision_rows import Row, clip_rows, image_rows
from .vision_speed import seconds

DENSE = "dense"
BATCH, TIMED = 50, 8  # samples that are asked at once, and that are timed
THIRDS = ("small", "medium", "large")


@dataclass
class Samples:
    """Held-out samples for one classifier.

    Attributes:
        name: of the set.
        model: in eval mode.
        read: samples -> pixel values.
        labels: [n] long.
        on_object: [n, patches] bool, where the shape is that makes the label.
        kinds: [n] kind of every sample, for tables.
        rows: a report of the tower and seeds -> rows.
        checkpoint: folder of the model.
    """

    name: str
    model: nn.Module
    samples: list[Any]
    read: Callable[[list[Any]], Tensor]
    labels: Tensor
    on_object: Tensor
    kinds: np.ndarray
    rows: Callable[[TowerReport, int], dict[str, Row]]
    checkpoint: Path

    @property
    def parts(self) -> dict[str, slice]:
        return {self.name: slice(0, len(self.samples))}

    @property
    def cluster(self) -> np.ndarray:
        return np.arange(len(self.samples))

    def pixels(self) -> Iterator[Tensor]:
        for start in range(0, len(self.samples), BATCH):
            yield self.read(self.samples[start : start + BATCH])

    def facts(self) -> dict:
        """As of questions: samples by kind, and how many have the commonest label."""
        return {
            self.name: {
                "asked": len(self.samples),
                "pictures": len(self.samples),
                "by_kind": dict(sorted(Counter(self.kinds.tolist()).items())),
                "majority": int(self.labels.bincount().max()),
            }
        }


def objects(count: int) -> Samples:
    """The image classifier and held-out pictures, whose kinds are thirds by the size of the shape."""
    model, processor = shapes.load_vit()
    samples = list(shapes.held_out_objects(count))
    sides = np.array([one.side for one in samples])
    return Samples(
        name="objects",
        model=model,
        samples=samples,
        read=lambda some: processor(images=[one.picture for one in some], return_tensors="pt")["pixel_values"],
        labels=torch.tensor([one.label for one in samples]),
        on_object=torch.from_numpy(np.stack([one.owner.ravel() >= 0 for one in samples])),
        kinds=np.array(THIRDS)[np.searchsorted(np.quantile(sides, [1 / 3, 2 / 3]), sides)],
        rows=image_rows,
        checkpoint=shapes.VIT_CHECKPOINT,
    )


def motions(count: int) -> Samples:
    """The clip classifier and held-out clips, whose kinds are what the shape does."""
    model, processor = shapes.load_motion()
    samples = list(shapes.held_out_motions(count))
    seen = np.stack([one.owner for one in samples])  # [n, frames, rows, columns]
    seen = seen.reshape(len(seen), -1, model.config.tubelet_size, *seen.shape[2:]).any(2)
    return Samples(
        name="motions",
        model=model,
        samples=samples,
        read=lambda some: processor([one.pictures for one in some], return_tensors="pt")["pixel_values"],
        labels=torch.tensor([one.label for one in samples]),
        on_object=torch.from_numpy(seen.reshape(len(seen), -1)),
        kinds=np.array([shapes.MOTIONS[one.label] for one in samples]),
        rows=clip_rows,
        checkpoint=shapes.MOTION_CHECKPOINT,
    )


def answers(samples: Samples, policies: list[VisionPolicy | None]) -> tuple[np.ndarray, dict[str, float]]:
    """right [len(policies), n] bool; and of the first policy what became of the shapes' patches.

    "kept": share of the patches that the tower is left with; "on": share of those on shapes that are; "pure": of the
    tokens that carry patches of a shape on, the part that is of the shape, 0 where nothing carries it.
    """
    right: list[list[Tensor]] = [[] for _ in policies]
    facts: list[tuple[float, float, float]] = []
    for start, pixels in zip(range(0, len(samples.samples), BATCH), samples.pixels(), strict=True):
        labels = samples.labels[start : start + BATCH]
        for number, policy in enumerate(policies):
            with wrap(samples.model, policy) if policy else torch.no_grad() as handle:
                right[number].append(samples.model(pixels).logits.argmax(-1) == labels)
                if policy and number == 0:
                    towers = handle.report().towers
                    facts += map(_became, towers, samples.on_object[start : start + BATCH])
    found = dict(zip(("kept", "on", "pure"), np.mean(facts, 0).round(4).tolist(), strict=True)) if facts else {}
    return torch.stack([torch.cat(row) for row in right]).numpy(), found


def _became(tower: TowerReport, on: Tensor) -> tuple[float, float, float]:
    place, count = tower.source + 1, tower.kept + 1  # 0 for what nothing carries
    part = place[on].bincount(minlength=count) / place.bincount(minlength=count).clamp_min(1)
    part[0] = 0.0
    return tower.kept / tower.total, float(on[tower.indices].sum() / on.sum()), float(part[place[on]].mean())


@torch.inference_mode()
def measure(
    samples: Samples,
    *,
    seeds: int,
    rounds: int,
    only: list[str] | None,
    retime: bool,
    earlier: dict | None,
    save: Callable[[dict], None],
) -> dict:
    """Every row as plain numbers; `save` gets the result whenever there is another one.

    Args:
        samples: what is asked.
        seeds: of random policies.
        rounds: of every measurement of time.
        only: names of rows; of the others, only what `earlier` holds comes into the result.
        retime: measure the times of rows taken over again.
        earlier: a result whose rows are taken over where they are of this setup and configuration.
        save: called with the result.
    """
    timed = samples.read(samples.samples[:TIMED])
    tower = probed(samples.model, timed)
    rows = samples.rows(tower, seeds)
    result = {**setup(samples, samples.checkpoint), "patches": tower.total, "batch": TIMED, "rows": []}
    texts = {DENSE: DENSE, **{name: row.text for name, row in rows.items()}}
    known = reusable(earlier, result, texts, {DENSE: (0,), **{name: row.columns for name, row in rows.items()}})

    def finished() -> dict:
        result["rows"] = [cell for name in (DENSE, *rows) for cell in known.get(name, [])]
        compare(result, rows, samples)
        save(result)
        return result

    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)
    ) as bar:
        missing = [name for name in (DENSE, *rows) if name not in known and (not only or name in (DENSE, *only))]
        task = bar.add_task("rows", total=len(missing))
        for name in missing:
            bar.update(task, description=name)
            known[name] = _cells(name, rows.get(name), texts[name], samples, tower)
            _timed(known[name], rows.get(name), samples.model, timed, rounds)
            finished()
            bar.advance(task)
        for name in [name for name in known if retime and name not in missing]:
            _timed(known[name], rows.get(name), samples.model, timed, rounds)
            finished()
    return finished()


def _cells(name: str, row: Row | None, text: str, samples: Samples, tower: TowerReport) -> list[dict]:
    """What one row answers in each of its columns; None is the dense model."""
    found = []
    for column, policies in ({0: [None]} if row is None else row.policies).items():
        right, facts = answers(samples, list(policies))
        first = policies[0]
        counts = [] if first is None else first.counts(len(tower.blocks), tower.total, tower.grid)
        cell = {"row": name, "configuration": text, "keep": column, "counts": counts, **facts}
        flops = 1.0 if first is None else round(share(first, tower), 4)
        found.append(cell | {"flops": flops, "right": packed(right)})
    return found


def _timed(cells: list[dict], row: Row | None, model: nn.Module, pixels: Tensor, rounds: int) -> None:
    """Adds how many times as many samples a second it takes as the dense model, of the same rounds."""
    if row is None:
        return
    calls = {DENSE: None, **{column: policies[0] for column, policies in row.policies.items()}}
    took = in_turns({key: partial(seconds, model, pixels, policy) for key, policy in calls.items()}, rounds)
    for cell in cells:
        cell["speed"] = round(ratio(took[DENSE], took[cell["keep"]]), 3)


def compare(result: dict, rows: dict[str, Row], samples: Samples) -> None:
    """Figures of all cells from their answers, with the differences to others in the same column that are there."""
    right = [unpacked(cell["right"], len(samples.samples)) for cell in result["rows"]]
    known = {(cell["row"], cell["keep"]): mine for cell, mine in zip(result["rows"], right, strict=True)}
    for cell, mine in zip(result["rows"], right, strict=True):
        against = rows[cell["row"]].against if cell["row"] in rows else {}
        others = {key: known[row, cell["keep"]] for key, row in against.items() if (row, cell["keep"]) in known}
        cell["sets"] = figures(mine, others, samples)


SETS = {"vit": (objects, 2400), "motion": (motions, 1000)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.vision_accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=SETS, help="only this one")
    parser.add_argument("--samples", type=int, help="held-out ones; 2400 pictures and 1000 clips unless given")
    parser.add_argument("--seeds", type=int, default=3, help="of random policies")
    parser.add_argument("--rounds", type=int, default=9, help="of every measurement of time")
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row; may be repeated")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of vision_vit.* and so on")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the folder holds already")
    parser.add_argument("--times", action="store_true", help="measure the times of rows the folder holds again")
    parser.add_argument("--plot-only", action="store_true", help="tables and plot of the results that are there")
    given = parser.parse_args()
    at_least(parser, given, samples=1, seeds=1, rounds=1, threads=1)
    return given


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    for name in given.model or SETS:
        file, (make, count) = given.out / f"vision_{name}.json", SETS[name]
        result = read(file)
        if not given.plot_only:
            result = measure(
                make(given.samples or count),
                seeds=given.seeds,
                rounds=given.rounds,
                only=given.row,
                retime=given.times,
                earlier=None if given.fresh else result,
                save=lambda result, file=file: replaced(file, written(result)),
            )
        if result is not None:
            publish(given.out, f"vision_{name}", written(result), vision_pareto.tables(result))
    vision_pareto.plot(given.out)


if __name__ == "__main__":
    main()

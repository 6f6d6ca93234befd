"""Accuracy and time of every policy at every budget: `python -m tokenprune.eval.accuracy [--scenes 2400] [--easy N]`.

On held-out scenes and on the test split of easy-VQA, with the embedded model. Every row is written as soon as it is
measured, with its answers; a run goes on where the last one stopped, and measures anew what is not of this setup.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import platform
import random
import sys
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from .. import Policy, list_policies
from . import intervals, pareto, shapes
from .asking import Batch, Stacked, Way, check_against_generate, encoded, way
from .clock import machine, ratios
from .files import packed, read, replaced, reusable, unpacked, written
from .inside import EASY as FEW
from .inside import FRONTS, Inside
from .rows import configurations, described
from .shapes.evaluate import majority
from .shapes.questions import Question

KEEPS = (0.5, 0.25, 0.11, 0.05)
DENSE = "dense"
SCENES, EASY = "scenes", "easy-VQA"
TIMED = (1, 8)  # batch sizes


def easy_samples(limit: int | None = None) -> list[shapes.Sample]:
    """The test questions of easy-VQA, image after image in an order drawn once; of a limit, the first ones.

    The kind of a question is that of its answer: "yes/no", "color" or "shape".
    """
    from .shapes import easy

    if limit == 0:
        return []
    grouped = [list(group) for _, group in groupby(sorted(easy.samples("test"), key=_path), key=_path)]
    random.Random(0).shuffle(grouped)
    found: list[shapes.Sample] = []
    for group in grouped:
        if limit is not None and len(found) >= limit:
            break
        with Image.open(group[0][0]) as image:
            picture = image.convert("RGB")
        found += [shapes.Sample(picture, Question(one.text, one.answer, _kind(one.answer))) for _, one in group]
    return found[:limit]


def _path(sample: tuple[str, Question]) -> str:
    return sample[0]


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"


class Questions:
    """All questions of a run, set after set, with their pictures encoded.

    Attributes:
        batches: over all sets, in order.
        parts: set -> its slice of the questions.
        kinds: [n] kind of every question.
        cluster: [n] number of its picture.
    """

    def __init__(self, model, processor, sets: dict[str, list], advance: Callable[[int], None], encoded=encoded):
        self.sets = {name: samples for name, samples in sets.items() if samples}
        self.batches: list[Batch] = []
        for samples in self.sets.values():
            for batch in encoded(model, processor, samples):
                self.batches.append(batch)
                advance(len(batch.samples))
        everything = [one for samples in self.sets.values() for one in samples]
        ends = np.cumsum([len(samples) for samples in self.sets.values()]).tolist()
        self.parts = {name: slice(a, b) for name, a, b in zip(self.sets, [0, *ends], ends, strict=False)}
        self.kinds = np.array([one.question.kind for one in everything])
        numbers = {key: i for i, key in enumerate(dict.fromkeys(id(_seen(one)) for one in everything))}
        self.cluster = np.array([numbers[id(_seen(one))] for one in everything])

    def __len__(self) -> int:
        return len(self.kinds)

    def first(self, few: int) -> list[Batch]:
        """The batches with all questions, but of easy-VQA only about so many."""
        left = len(self) if EASY not in self.parts else self.parts[EASY].start + few
        ends = np.cumsum([len(batch.samples) for batch in self.batches])
        return self.batches[: int((ends <= left).sum()) or 1]

    def facts(self) -> dict:
        """Per set: questions by kind, pictures, and what always giving the commonest answer of a kind scores."""
        return {
            name: {
                "asked": len(samples),
                "pictures": len(set(self.cluster[self.parts[name]].tolist())),
                "by_kind": dict(sorted(Counter(one.question.kind for one in samples).items())),
                "majority": sum(right for right, _ in majority(samples).values()),
            }
            for name, samples in self.sets.items()
        }


def _seen(sample: shapes.Sample | shapes.VideoSample) -> Any:
    return sample.frames if isinstance(sample, shapes.VideoSample) else sample.image


def answers(
    ways: list[Way], keeps: tuple[float, ...], batches: list[Batch]
) -> dict[float, tuple[np.ndarray, int | float]]:
    """keep -> right [len(ways), questions] bool, and visual tokens kept per picture, on average where they differ."""
    right: dict[float, list[list[torch.Tensor]]] = {keep: [[] for _ in ways] for keep in keeps}
    kept: dict[float, dict[int | float, int]] = {keep: Counter() for keep in keeps}
    for batch in batches:
        for number, one in enumerate(ways):
            for keep in keeps:
                with one.at(keep, batch):
                    words = one.words(one.encoded(batch, keep))
                    kept[keep][one.kept(batch)] += len(batch.samples)
                right[keep][number].append(words == batch.answers)
    return {
        keep: (torch.stack([torch.cat(row) for row in rows]).numpy(), _mean(kept[keep])) for keep, rows in right.items()
    }


def _mean(counted: dict[int | float, int]) -> int | float:
    if len(counted) == 1:
        return next(iter(counted))
    return sum(value * times for value, times in counted.items()) / sum(counted.values())


def figures(right: np.ndarray, others: dict[str, np.ndarray], questions: Questions) -> dict:
    """Per set: correct answers (mean over seeds), interval, the same by kind, and the differences to others.

    A row that was asked the first questions only is compared on these.
    """
    found, asked = {}, right.shape[1]
    for name, whole in questions.parts.items():
        if whole.start >= asked:
            continue
        part = slice(whole.start, min(whole.stop, asked))
        mine, kinds, cluster = right[:, part], questions.kinds[part], questions.cluster[part]
        one = _figure(mine, cluster)
        one["by_kind"] = {str(k): _figure(mine[:, kinds == k], cluster[kinds == k]) for k in np.unique(kinds)}
        if len(mine) > 1:
            one["seeds"] = [int(row.sum()) for row in mine]
        for key, other in others.items():
            paired = intervals.difference(mine, other[:, part], cluster)
            one[key] = dict(zip(("mean", "low", "high"), (round(x, 5) for x in paired), strict=True))
        found[name] = one
    return found


def _figure(right: np.ndarray, cluster: np.ndarray) -> dict:
    low, high = intervals.share(right, cluster)
    return {
        "correct": round(float(right.mean(0).sum()), 2),
        "asked": right.shape[1],
        "accuracy": round(float(right.mean()), 5),
        "low": round(low, 5),
        "high": round(high, 5),
    }


def setup(questions: Questions, checkpoint: Path) -> dict:
    """What two runs must share for their rows to stand in one table."""
    return {
        "sets": questions.facts(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "transformers", "tokenprune-vlm")},
            "checkpoint": hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16],
        },
        "machine": machine(),
    }


def configuration(policies: list[Policy | Inside]) -> str:
    """What a row measured: the policy's settings, and the code in its file."""
    kind = type(policies[0].policy if isinstance(policies[0], Inside) else policies[0])
    tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            node.body = [line for line in node.body if not _only_words(line)]
    return f"{', '.join(map(described, policies))} #{hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:8]}"


def _only_words(line: ast.stmt) -> bool:
    """A docstring, or one of the lines for `tokenprune show`."""
    if isinstance(line, ast.AnnAssign):
        return isinstance(line.target, ast.Name) and line.target.id in ("cost", "when", "limits", "reads")
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


@torch.inference_mode()
def measure(
    sets: dict[str, list[shapes.Sample]],
    rows: dict[str, list[Policy | Inside]],
    repeats: int,
    *,
    only: list[str] | None,
    retime: bool,
    earlier: dict | None,
    save: Callable[[dict], None],
) -> dict:
    """Every row as plain numbers; `save` gets the result whenever there is another one.

    Args:
        sets: name -> samples.
        rows: of the table, see `configurations`.
        repeats: of every time measurement.
        only: names of policies; of the others, only what `earlier` holds comes into the result.
        retime: measure the times of rows taken over again.
        earlier: a result whose rows are taken over where they are of this setup and configuration.
        save: called with the result.
    """
    model, processor = shapes.load()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=_err()) as bar:
        task = bar.add_task("encoding pictures", total=sum(map(len, sets.values())))
        questions = Questions(model, processor, sets, lambda n: bar.advance(task, n))
        check_against_generate(model, processor, questions.batches[0])
        result = {**setup(questions, shapes.CHECKPOINT), "rows": []}
        timed = [batch for n in TIMED for batch in encoded(model, processor, next(iter(sets.values()))[:n])]
        dense, texts = way(model, processor, None), {name: configuration(several) for name, several in rows.items()}
        budgets = {DENSE: (1.0,), **{name: _keeps(several[0]) for name, several in rows.items()}}
        known = reusable(earlier, result, {DENSE: DENSE, **texts}, budgets)
        for cell in (one for name in known if isinstance(rows.get(name, [None])[0], Inside) for one in known[name]):
            cell["against"] = rows[cell["row"]][0].against
        missing = {
            name: several
            for name, several in {DENSE: [None], **rows}.items()
            if name not in known and budgets[name] and (name == DENSE or only is None or several[0].name in only)
        }
        task = bar.add_task("measuring rows", total=len(missing))
        for name, several in missing.items():
            bar.update(task, description=name)
            ways = [way(model, processor, one) for one in several]
            inside = isinstance(ways[0], Stacked)
            found = answers(ways, budgets[name], questions.first(FEW) if inside else questions.batches)
            times = {} if name == DENSE else _times(dense, ways[0], budgets[name], timed, repeats)
            known[name] = [
                {
                    "row": name,
                    "policy": DENSE if name == DENSE else several[0].name,
                    "configuration": texts.get(name, DENSE),
                    "keep": keep,
                    "tokens": kept,
                    "times": times.get(keep, {}),
                    "right": packed(right),
                    **({"asked": right.shape[1], **ways[0].facts(keep)} if inside else {}),
                }
                for keep, (right, kept) in found.items()
            ]
            result["rows"] = [cell for row in (DENSE, *rows) for cell in known.get(row, [])]
            compare(result, questions)
            save(result)
            bar.advance(task)
        again = [name for name in rows if retime and name in known and name not in missing]
        task = bar.add_task("measuring times", total=len(again))
        for name in again:
            times = _times(dense, way(model, processor, rows[name][0]), budgets[name], timed, repeats)
            known[name] = [{**cell, "times": times[cell["keep"]]} for cell in known[name]]
            bar.advance(task)
        result["rows"] = [cell for row in (DENSE, *rows) for cell in known.get(row, [])]
        compare(result, questions)
        save(result)
    return result


def _err() -> Console:
    return Console(stderr=True)


def _keeps(policy: Policy | Inside) -> tuple[float, ...]:
    return policy.keeps(KEEPS) if isinstance(policy, Inside) else KEEPS


def _times(
    dense: Way, one: Way, keeps: tuple[float, ...], timed: list[Batch], repeats: int
) -> dict[float, dict[str, float]]:
    """keep -> "prefill, batch 1" and so on -> ratio to dense."""
    found: dict[float, dict[str, float]] = {keep: {} for keep in keeps}
    for batch in timed:
        for keep, parts in ratios(dense, one, keeps, batch, repeats).items():
            found[keep] |= {f"{part}, batch {len(batch.samples)}": round(ratio, 4) for part, ratio in parts.items()}
    return found


def compare(result: dict, questions: Questions) -> None:
    """Figures of all cells from their answers, against `random` and others at the same budget where they are there."""
    right = [unpacked(cell["right"], cell.get("asked", len(questions))) for cell in result["rows"]]
    known = {(cell["row"], cell["keep"]): mine for cell, mine in zip(result["rows"], right, strict=True)}
    few = min((cell["asked"] for cell in result["rows"] if "asked" in cell), default=None)
    for cell, mine in zip(result["rows"], right, strict=True):
        against = cell.get("against", {} if cell["row"] == "random" else {"over_random": "random"})
        others = {key: known[row, cell["keep"]] for key, row in against.items() if (row, cell["keep"]) in known}
        cell["sets"] = figures(mine, {key: other[:, : mine.shape[1]] for key, other in others.items()}, questions)
        if few is not None and cell["row"] in ("random", *FRONTS):  # on the questions that rows inside were asked
            cell["few"] = figures(mine[:, :few], {}, questions)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2400, help="held-out scenes, one question each")
    parser.add_argument("--easy", type=int, help="questions of the easy-VQA test split; all 9673 unless given, 0 none")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the random policy")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of every time measurement")
    parser.add_argument("--policy", action="append", metavar="NAME", help="only rows of this policy; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder for accuracy.json, .md and .png")
    parser.add_argument("--no-clip", action="store_true", help="leave out the rows with CLIP relevance")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the folder holds already")
    parser.add_argument("--times", action="store_true", help="measure the times of rows the folder holds again")
    parser.add_argument("--plot-only", action="store_true", help="tables and plots of the accuracy.json that is there")
    given = parser.parse_args()
    for name, least in (("scenes", 1), ("seeds", 1), ("repeats", 1), ("easy", 0)):
        if (value := getattr(given, name)) is not None and value < least:
            parser.error(f"--{name} {value} is below {least}")
    for name in given.policy or []:
        if name not in list_policies():
            parser.error(f"--policy {name} has no row: policies are {', '.join(list_policies())}")
    if given.plot_only and read(given.out / "accuracy.json") is None:
        parser.error(f"--plot-only needs {given.out / 'accuracy.json'}: leave the option out to measure")
    return given


def main() -> None:
    given = arguments()
    file = given.out / "accuracy.json"

    def save(result: dict) -> None:
        replaced(file, written(result))

    result = read(file)
    if not given.plot_only:
        rows = configurations(None if given.no_clip else shapes.load_clip(), given.seeds)
        sets = {SCENES: list(shapes.held_out(given.scenes)), EASY: easy_samples(given.easy)}
        earlier = None if given.fresh else result
        options = {"only": given.policy, "retime": given.times, "earlier": earlier, "save": save}
        result = measure(sets, rows, given.repeats, **options)
    Console().print(Markdown(pareto.write(result, given.out)))


if __name__ == "__main__":
    main()

"""CoViPAL's module against policies without training: `python -m tokenprune.eval.learned.covipal [--scenes 2400]`.

The same held-out questions for all, at 25, 11, 5 and 2 % of the tokens, with the embedded model. Differences are paired
by question, with 95 % intervals that count pictures. easy-VQA, which the module has not seen, shows what it is worth
elsewhere. And what the module adds to a prefill.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from ... import CDPruner, CoViPAL, DivPrune, FastV, Random, Uniform, VisionZip, ZooPrune
from .. import shapes
from ..accuracy import DENSE, EASY, SCENES, Questions, answers, easy_samples, figures, setup
from ..asking import Way, encoded, way
from ..clock import in_turns, ratio
from ..files import publish, written
from ..inside import Inside

KEEPS = (0.25, 0.11, 0.05, 0.02)
SEEDS, TIMED = 3, 0.05
GRID = (1, 16, 16)
TRAINED = ("covipal", "covipal + fastv")


def rows(predictor: Path) -> dict[str, list[Any]]:
    """Row -> policies without a budget. The best of the accuracy table, in front and combined, and what is usual."""
    trained = CoViPAL(predictor=predictor)
    behind = Inside(policy=FastV(), drops=(1,), front=Uniform(), row="fastv")
    return {
        "covipal": [trained],
        "covipal + fastv": [replace(behind, front=trained)],
        "random": [Random(seed=seed) for seed in range(SEEDS)],
        "uniform": [Uniform()],
        "uniform + fastv": [behind],
        "zooprune, norm": [ZooPrune(estimator="norm")],
        "visionzip": [VisionZip()],
        "divprune": [DivPrune()],
        "cdpruner": [CDPruner()],
    }


@torch.inference_mode()
def measure(predictor: Path, scenes: int, easy: int, repeats: int) -> dict:
    """Every row as plain numbers."""
    model, processor = shapes.load()
    sets = {SCENES: list(shapes.held_out(scenes)), EASY: easy_samples(easy)}
    with Progress() as bar:
        several = rows(predictor)
        task = bar.add_task("questions", total=sum(map(len, sets.values())))
        questions = Questions(model, processor, sets, lambda n: bar.advance(task, n))
        result = {**setup(questions, shapes.CHECKPOINT), "training": _training(predictor), "rows": []}
        right = {(DENSE, 1.0): answers([way(model, processor, None)], (1.0,), questions.batches)[1.0]}
        task = bar.add_task("rows", total=len(several))
        for name, policies in several.items():
            ways = [way(model, processor, one) for one in policies]
            found = answers(ways, KEEPS, questions.batches)
            right |= {(name, keep): cell for keep, cell in found.items()}
            bar.advance(task)
    rivals = [name for name in several if name not in TRAINED]
    for (name, keep), (mine, kept) in right.items():
        others = {f"over {one}": right[one, keep][0] for one in rivals if name in TRAINED}
        cell = {"row": name, "keep": keep, "tokens": kept, "sets": figures(mine, others, questions)}
        result["rows"].append(cell)
    result["cost"] = cost(model, processor, sets[SCENES], predictor, repeats)
    return result


def _training(predictor: Path) -> dict[str, Any]:
    file = predictor / "training.json"
    return json.loads(file.read_text()) if file.exists() else {}


def cost(model, processor, samples: list, predictor: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Batch size -> the module's time beside that of the dense and the pruned prefill, medians of ratios in turns."""
    return {str(n): _cost(model, processor, samples[:n], predictor, repeats) for n in (1, 8)}


def _cost(model, processor, samples: list, predictor: Path, repeats: int) -> dict[str, float]:
    (given,) = encoded(model, processor, samples)
    dense, pruned = way(model, processor, None), way(model, processor, CoViPAL(predictor=predictor))
    module, features = CoViPAL(predictor=predictor).trained, torch.stack(given.features)
    text = torch.randn(len(samples), given.inputs["input_ids"].shape[1] - given.total, features.shape[2])
    mask = torch.ones(text.shape[:2], dtype=torch.bool)

    def alone() -> float:
        return _seconds(
            lambda: module.spread(module(features, text, mask, GRID), round(TIMED * features.shape[1]), GRID)
        )

    def prefill(one: Way, keep: float) -> float:
        with one.at(keep, given):
            arguments = one.encoded(given, keep)
            return _seconds(lambda: one.words(arguments))

    calls = {"module": alone, "dense": partial(prefill, dense, 1.0), "pruned": partial(prefill, pruned, TIMED)}
    seconds = in_turns(calls, repeats)
    found = {
        "module_ms": 1e3 * statistics.median(seconds["module"]),
        "of_dense": ratio(seconds["module"], seconds["dense"]),
        "of_pruned": ratio(seconds["module"], seconds["pruned"]),
        "pruned_of_dense": ratio(seconds["pruned"], seconds["dense"]),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _seconds(call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def table(result: dict) -> str:
    """Markdown."""
    text = ""
    for part, facts in result["sets"].items():
        cells = [cell for cell in result["rows"] if part in cell["sets"]]
        dense = next(cell for cell in cells if cell["row"] == DENSE)["sets"][part]
        text += f"## {part}, {facts['asked']} questions; dense {100 * dense['accuracy']:.1f} %\n\n"
        text += f"| accuracy, % | {' | '.join(f'{keep:.0%}' for keep in KEEPS)} |\n|---|{len(KEEPS) * '---:|'}\n"
        for row in dict.fromkeys(cell["row"] for cell in cells if cell["row"] != DENSE):
            own = {cell["keep"]: cell["sets"][part] for cell in cells if cell["row"] == row}
            shares = " | ".join(f"{100 * own[keep]['accuracy']:.1f}" for keep in KEEPS)
            text += f"| {row} | {shares} |\n"
        text += "\n"
        for name in TRAINED:
            own = [cell for cell in cells if cell["row"] == name]
            told = (_over_best(cell, [one for one in cells if one["keep"] == cell["keep"]], part) for cell in own)
            text += f"{name} over the best without training, points [95 % interval]: {'; '.join(told)}.\n\n"
    if training := result["training"]:
        text += (
            f"Trained on {training['data']}, {training['steps']} steps of {training['batch']} in "
            f"{training['seconds'] / 60:.0f} minutes; {training['parameters']:,} parameters, "
            f"{training['extra_mib']:.0f} MiB beside the frozen model.\n\n"
        )
    for batch, row in result["cost"].items():
        text += (
            f"Batch {batch}: the module takes {row['module_ms']:.1f} ms, {row['of_dense']:.0%} of the dense prefill; "
            f"the prefill with 5 % of the tokens, module included, {row['pruned_of_dense']:.0%}.\n\n"
        )
    return text + f"{result['machine']}\n"


def _over_best(cell: dict, beside: list[dict], part: str) -> str:
    """Of one budget: how many points more than the row without training that has the most."""
    rivals = [one for one in beside if one["row"] not in (*TRAINED, DENSE)]
    best = max(rivals, key=lambda one: one["sets"][part]["accuracy"])["row"]
    over = cell["sets"][part][f"over {best}"]
    mean, low, high = (f"{100 * over[name]:+.1f}" for name in ("mean", "low", "high"))
    return f"{cell['keep']:.0%} {mean} [{low}, {high}] ({best})"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.learned.covipal", description=__doc__.splitlines()[0])
    parser.add_argument("--predictor", type=Path, default=shapes.PREDICTOR, help="folder of the module")
    parser.add_argument("--scenes", type=int, default=2400, help="held-out scenes, one question each")
    parser.add_argument("--easy", type=int, default=2400, help="questions of easy-VQA's test split")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of time measurements")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of learned_covipal.*")
    options = parser.parse_args(given)
    result = measure(options.predictor, options.scenes, options.easy, options.repeats)
    publish(options.out, "learned_covipal", written(result), table(result))


if __name__ == "__main__":
    main()

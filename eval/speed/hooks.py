"""What the hooks of `wrap` cost in Python: `python -m tokenprune.eval.speed.hooks [--rounds 100] [--threads 1]`.

On a model so small that its arithmetic takes next to no time, and every microsecond of Python shows. In each round
the pairs follow each other: a forward as it is, wrapped without effect, pruned, and by the oracle of `tokenprune
bench`; and a step on the cache of a pruned prefill, beside the same step of the dense model on a prompt as short.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ... import wrap
from .. import specs
from ..bench.build import Subject
from ..bench.measure import Bench, middle
from ..bench.shapes import SHAPES, Tower
from ..clock import in_turns
from ..files import at_least, indented, publish
from .selection import where

NAME, SCALE, TEXT = "llava-1.5-7b", 0.02, 16
TOWER = Tower(hidden=64, inner=64, layers=4, heads=16, patch=14, image=112)  # 8 x 8 tokens
KEEP, LAYERS = 16, 4
# name -> policy, as `tokenprune bench` writes them
WHOLE = {"none": "none", "random, keep=1.0": "random(keep=1.0)"}
PRUNED = {f"random, keep={KEEP}": f"random(keep={KEEP})", f"fastv, keep={KEEP}": f"fastv(keep={KEEP}, layer=2)"}


def tiny() -> Subject:
    """LLaVA-1.5 with one head of 128 channels in four layers, and a picture of 64 tokens."""
    torch.manual_seed(0)
    whole = SHAPES[NAME]
    shape = replace(whole, tower=TOWER, tokens=(TOWER.image // TOWER.patch) ** 2)
    model = transformers.AutoModelForImageTextToText.from_config(shape.config(shape, SCALE)).eval()
    return Subject(model, shape.inputs(SCALE, TEXT, 0), shape.tokens, None, None, {})


class Costs:
    """Calls that are timed. Each wraps before the clock starts, and repeats."""

    def __init__(self, repeats: int):
        self.subject, self.repeats = tiny(), repeats
        self.bench = Bench(self.subject, new=2)
        self.model, self.inputs = self.subject.model, self.subject.one

    def wrapped(self, text: str | None) -> Any:
        """Nothing for None."""
        return nullcontext() if text is None else wrap(self.model, specs.policies(text) or "none")

    @torch.inference_mode()
    def forward(self, text: str | None) -> float:
        """Microseconds of a forward, pixels to first logits."""
        with self.wrapped(text):
            return self._each(partial(self.model, **self.inputs, use_cache=True, logits_to_keep=1))

    @torch.inference_mode()
    def oracle(self, oracle: Callable[[], Tensor]) -> float:
        return self._each(oracle)

    @torch.inference_mode()
    def step(self, text: str | None, length: int = 0) -> float:
        """Microseconds of a step on the cache of a prefill: of the picture, wrapped, or a plain one of `length` tokens.

        The cache grows by a token a step.
        """
        with self.wrapped(text):
            if text is None:
                drawn = torch.Generator().manual_seed(1)
                width = self.model.config.get_text_config().hidden_size
                out = self.model(inputs_embeds=torch.randn(1, length, width, generator=drawn), use_cache=True)
            else:
                out = self.model(**self.inputs, use_cache=True)
            cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
            return self._each(partial(self.model, input_ids=token, past_key_values=cache, use_cache=True))

    def _each(self, call: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        for _ in range(self.repeats):
            call()
        return 1e6 * (time.perf_counter() - begun) / self.repeats


@dataclass(frozen=True)
class Pair:
    """What is timed beside what, and how it is named."""

    what: str
    policy: str
    against: str
    mine: Callable[[], float]
    other: Callable[[], float]


def pairs(costs: Costs) -> list[Pair]:
    """Wrapped without effect beside the model as it is; pruned beside what has nothing to choose."""
    found, whole = [], costs.inputs["input_ids"].shape[1]
    for name, text in WHOLE.items():
        plain = "the model as it is"
        found.append(Pair("forward", name, plain, partial(costs.forward, text), partial(costs.forward, None)))
        found.append(Pair("step", name, plain, partial(costs.step, text), partial(costs.step, None, whole)))
    for name, text in PRUNED.items():
        row = costs.bench.probe(specs.policies(text), 1)
        oracle = partial(costs.oracle, row.oracle)
        found.append(Pair("forward", name, "the oracle", partial(costs.forward, text), oracle))
        if not row.report.events:  # else the layers' caches are of several lengths
            short = partial(costs.step, None, whole - row.total + row.kept)
            found.append(Pair("step", name, "a prompt as short", partial(costs.step, text), short))
    return found


def measure(rounds: int, repeats: int) -> list[dict[str, Any]]:
    """A row for every pair. Microseconds as [median, lowest, highest] over rounds, "added" within a round."""
    tried = pairs(Costs(repeats))
    calls = {(i, side): getattr(pair, side) for i, pair in enumerate(tried) for side in ("mine", "other")}
    took, rows = in_turns(calls, rounds), []
    for i, pair in enumerate(tried):
        mine, others = took[i, "mine"], took[i, "other"]
        added = [a - b for a, b in zip(mine, others, strict=True)]
        row = {"what": pair.what, "policy": pair.policy, "against": pair.against}
        row |= {"us": _whole(mine), "against_us": _whole(others), "added_us": _whole(added)}
        rows.append(row | {"share": round(statistics.median(added) / statistics.median(others), 4)})
    return rows


def _whole(values: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in middle(values)]


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| what | policy | us | beside | us | added, us | added, % |", "|---|---|---:|---|---:|---:|---:|"]
    for row in result["rows"]:
        median, low, high = row["added_us"]
        lines.append(
            f"| {row['what']} | {row['policy']} | {row['us'][0]:,.0f} | {row['against']} | {row['against_us'][0]:,.0f} "
            f"| {median:+,.0f} ({low:+,.0f} to {high:+,.0f}) | {100 * row['share']:+.1f} |"
        )
    lines += [
        "",
        f"Medians (lowest to highest) of {result['rounds']} rounds in turns, each the mean of {result['repeats']} "
        f"calls in a row, float32, on {result['device']}. A LLaVA of {LAYERS} layers of one head, 64 visual tokens and "
        f"{TEXT} of text: what is added is the same on a large model but for what goes by layers. What a forward with "
        "a policy adds holds its selection.",
        "",
        f"`{result['command']}`",
    ]
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.speed.hooks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="of every measurement")
    parser.add_argument("--repeats", type=int, default=10, help="calls in a row, within a round")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of hook_costs.*")
    options = parser.parse_args(given)
    at_least(parser, options, rounds=1, repeats=1, threads=1)
    torch.set_num_threads(options.threads)
    words = {"rounds": options.rounds, "repeats": options.repeats, "threads": options.threads}
    result = {
        **where("cpu"), **words,
        "command": shlex.join(["python", "-m", "tokenprune.eval.speed.hooks"]
                              + [text for name, value in words.items() for text in (f"--{name}", str(value))]),
        "rows": measure(options.rounds, options.repeats),
    }  # fmt: skip
    publish(options.out, "hook_costs", indented(result), table(result))


if __name__ == "__main__":
    main()

"""Where the host waits for the GPU: `python -m tokenprune.eval.speed.waits [--shape llava-1.5-7b]`.

One forward of every policy on a CUDA device, on a model of a known shape with few layers: how often the host waits
between the end of the projector and the first decoder layer, where selections are made, and from there to the end of
the decoder; the dense model's own waits beside them. Where kept counts follow from shapes, a policy adds none.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...adapters import lookup, supported
from ...errors import InputError, TokenPruneError
from ...stages.parts import Parts, find_parts
from ...wrap import wrap
from .. import specs
from ..bench.build import QUESTION, Subject, from_shape
from ..bench.measure import DENSE
from ..bench.oracle import around
from ..bench.shapes import SHAPES
from ..files import at_least, indented, publish
from .events import waits
from .goals import Goal, verdicts
from .policies import policies
from .selection import where

SCALE, TEXT, KEPT = 0.125, 64, 64
GOAL = Goal("added", "<=", 0, " added")
SPANS = ("selection", "decoder")


@contextmanager
def spans(parts: Parts, watch: Callable[[], Any]) -> Iterator[dict[str, list[str]]]:
    """Places at which the host waits in a forward within: "selection", from the projector to the first decoder layer,
    and "decoder", from there on.

    Args:
        watch: a context that answers a list and fills it behind its end.
    """
    found: dict[str, list[str]] = {name: [] for name in SPANS}
    running: list[tuple[str, ExitStack, list[str]]] = []

    def ends() -> None:
        if running:
            name, stack, places = running.pop()
            stack.close()
            found[name] += places

    def begins(name: str) -> None:
        ends()
        stack = ExitStack()
        running.append((name, stack, stack.enter_context(watch())))

    def encoding(method: Callable, args: tuple, kwargs: dict) -> Any:
        out = method(*args, **kwargs)
        begins("selection")
        return out

    def enters(module: nn.Module, args: tuple) -> None:
        begins("decoder")

    def leaves(module: nn.Module, args: tuple, out: Any) -> None:
        ends()

    # behind what `wrap` hangs on the first layer: a policy may drop in front of it
    hooks = [parts.decoder.layers[0].register_forward_pre_hook(enters), parts.decoder.register_forward_hook(leaves)]
    try:
        with around(parts.outer, encoding):
            yield found
    finally:
        ends()
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def measure(subject: Subject, names: Sequence[str], keep: int, watch: Callable[[], Any] = waits) -> list[dict]:
    """A row for the dense model and every policy: waits in each span, those that the dense model has not, and the
    lines of code. What a policy makes once is made before."""
    model, rows = subject.model, []
    parts, inputs = find_parts(model, lookup, supported()), {**subject.one, "use_cache": True, "logits_to_keep": 1}
    for name in (DENSE, *names):
        row: dict[str, Any] = {"policy": name}
        try:
            made = specs.policies("none" if name == DENSE else name, keep=None if name == DENSE else keep)
            with ExitStack() as stack:
                if made:
                    stack.enter_context(wrap(model, made)).instruction = QUESTION
                model(**inputs)
                with spans(parts, watch) as found:
                    model(**inputs)
        except TokenPruneError as error:
            rows.append(row | {"refused": str(error), "goals": []})
            continue
        row |= {span: len(found[span]) for span in SPANS} | {"at": {span: sorted(set(found[span])) for span in SPANS}}
        dense = rows[0] if rows else row
        row["added"] = row["selection"] - dense["selection"]
        rows.append(row | {"goals": [] if name == DENSE else [GOAL.of(row)]})
    return rows


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| shape | policy | projector to first layer | added | in the decoder | where | goal |"]
    lines.append("|---|---|---:|---:|---:|---|---|")
    for row in result["rows"]:
        if "refused" in row:
            lines.append(f"| {row['shape']} | {row['policy']} | | | | {row['refused']} | |")
            continue
        at = ", ".join(row["at"]["selection"])
        lines.append(
            f"| {row['shape']} | {row['policy']} | {row['selection']} | {row['added']} | {row['decoder']} | {at} | "
            f"{verdicts(row['goals'])} |"
        )
    lines += [
        "",
        f"Waits of the host in one forward, as torch.cuda.set_sync_debug_mode says them; {result['keep']} tokens kept, "
        f"scale {result['scale']:g}, bfloat16, on {result['device']}. Added: beside the dense model's own.",
        "",
        f"`{result['command']}`",
    ]
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.speed.waits", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="llava-1.5-7b unless given; may be repeated")
    parser.add_argument("--policy", action="append", help="all that need no training unless given; may be repeated")
    parser.add_argument("--keep", type=int, default=KEPT, help="tokens")
    parser.add_argument("--scale", type=float, default=SCALE, help="share of a shape's heads and layers")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of waits.*")
    options = parser.parse_args(given)
    at_least(parser, options, keep=1)
    if not torch.cuda.is_available():
        parser.error("waits are counted on a CUDA device, and torch finds none: run this on a machine with a GPU")
    names = options.shape or ["llava-1.5-7b"]
    words = [("shape", name) for name in names] + [("policy", name) for name in options.policy or []]
    words += [("keep", options.keep), ("scale", options.scale)]
    rows = []
    try:
        for name in names:
            subject = from_shape(
                name, scale=options.scale, dtype="bfloat16", device="cuda", attention="sdpa", text=TEXT, seed=0
            )
            found = measure(subject, options.policy or policies(), options.keep)
            rows += [{"shape": name} | row for row in found]
    except InputError as error:
        parser.error(str(error))
    result = {
        **where("cuda"), "keep": options.keep, "scale": options.scale,
        "command": shlex.join(["python", "-m", "tokenprune.eval.speed.waits"]
                              + [text for name, value in words for text in (f"--{name}", str(value))]),
        "rows": rows,
    }  # fmt: skip
    publish(options.out, "waits", indented(result), table(result))


if __name__ == "__main__":
    main()

"""What reading attention rows costs beside a layer: `python -m tokenprune.eval.speed.rows [--device cuda --scale 1]`.

One decoder layer of a known shape with random weights, on all its tokens. Its queries and keys are noted as its
attention hands them over; then, in turns: the layer, the layer that also works out rows, and the rows alone.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...adapters import lookup, supported
from ...checkpoints import usable
from ...stages.hook import by_name
from ...stages.layer_plan import attention_of
from ...stages.parts import find_parts
from ...stages.rows import LayerAttention
from ...stages.tap import listen
from ..bench.build import DTYPES, default_dtype, from_shape
from ..bench.measure import middle
from ..bench.shapes import SHAPES
from ..clock import in_turns
from ..files import at_least, indented, publish
from .events import seconds
from .goals import Goal, verdicts
from .selection import where

ROWS = (1, 16, 32)  # FastV's last token; SparseVLM's raters
NAMES = ("llava-next-7b", "qwen2.5-vl-7b")
SCALE, TEXT = 0.125, 64
LAYER = 1  # of the decoder; the first may differ from the others
GOAL = Goal("share", "<=", 0.02, " of a layer", percent=True)


class Layer:
    """One decoder layer and what one forward gave it.

    Attributes:
        length: tokens of the prompt.
        heads, width: of its queries.
    """

    def __init__(self, name: str, *, scale: float, dtype: str, device: str, text: int = TEXT):
        subject = from_shape(name, scale=scale, dtype=dtype, device=device, attention="sdpa", text=text, seed=0)
        parts = find_parts(subject.model, lookup, supported())
        self.decoder, self.module = parts.decoder, parts.decoder.layers[LAYER]
        self.given: dict[str, Any] = {}
        hook = self.module.register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            with torch.inference_mode():
                subject.model(**subject.one, use_cache=True, logits_to_keep=1)
        finally:
            hook.remove()
        ids = subject.one["input_ids"]
        self.visual = ids == ids.mode().values  # the placeholder is what most of the prompt is
        self.length, self.hidden = ids.shape[1], self.given["hidden_states"].shape[-1]
        self.handed: tuple[Tensor, Tensor, Any, dict[str, Any]] | None = None
        with self.shown(self._keep):
            self()

    def _note(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = by_name(module, args, kwargs)
        self.given = {name: value for name, value in given.items() if name != "past_key_values"}

    def _keep(self, query: Tensor, keys: Tensor, mask: Any, options: dict[str, Any]) -> None:
        self.handed = query, keys, mask, options

    @contextmanager
    def shown(self, what: Callable[[Tensor, Tensor, Any, dict[str, Any]], Any]) -> Iterator[None]:
        """Within, `what` sees the queries and keys of every call."""

        def note(module: nn.Module, *handed: Any) -> None:
            what(*handed)

        undo = listen(attention_of(self.module), note)
        try:
            yield
        finally:
            undo()

    @torch.inference_mode()
    def __call__(self) -> None:
        """As in a prefill: keys and values go to a cache."""
        self.module(**self.given, past_key_values=DynamicCache(config=self.decoder.config))

    @torch.inference_mode()
    def rows(self, count: int, query: Tensor, keys: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
        """[1, L] attention that the last `count` tokens give, over heads and rows."""
        places = torch.arange(self.length - count, self.length, device=query.device)[None]
        attention = LayerAttention(
            rows=places, row_mask=torch.ones_like(places, dtype=torch.bool), visual=self.visual, text=~self.visual,
            place=torch.arange(self.length, device=query.device)[None], heads=query.shape[1], query=query, keys=keys,
            mask=mask, options=options, first=0,
        )  # fmt: skip
        return sum(some.sum((1, 2)) for _, some in attention.blocks())

    def alone(self, count: int) -> Tensor:
        """`rows` of what was noted."""
        return self.rows(count, *self.handed)


def _both(layer: Layer, count: int, device: str) -> float:
    """Seconds of the layer with the rows in it."""
    with layer.shown(partial(layer.rows, count)):
        return seconds(layer, device)


def measure(names: Sequence[str], *, scale: float, dtype: str, device: str, rounds: int) -> list[dict[str, Any]]:
    """A row for every shape and number of rows. Shares are of the layer's time in the same round: [median, lowest,
    highest]; "share" of the rows alone, "within" of the layer with them, less 1."""
    found = []
    for name in names:
        layer = Layer(name, scale=scale, dtype=dtype, device=device)
        calls: dict[Any, Callable[[], float]] = {0: partial(seconds, layer, device)}
        for count in ROWS:
            calls["alone", count] = partial(seconds, partial(layer.alone, count), device)
            calls["within", count] = partial(_both, layer, count, device)
        took = in_turns(calls, rounds)
        for count in ROWS:
            shares = list(map(truediv, took["alone", count], took[0]))
            within = [value - 1 for value in map(truediv, took["within", count], took[0])]
            row = {
                "shape": name, "tokens": SHAPES[name].tokens, "length": layer.length, "hidden": layer.hidden,
                "rows": count, "layer_ms": [round(1000 * value, 3) for value in middle(took[0])],
                "rows_ms": [round(1000 * value, 4) for value in middle(took["alone", count])],
                "share": [round(value, 5) for value in middle(shares)],
                "within": [round(value, 5) for value in middle(within)],
            }  # fmt: skip
            found.append(row | {"goals": [GOAL.of(row)]})
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| shape | tokens | width | layer, ms | rows | rows alone, ms | of the layer | layer with them | goal |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for row in result["rows"]:
        lines.append(
            f"| {row['shape']} | {row['length']:,} | {row['hidden']} | {row['layer_ms'][0]:.2f} | {row['rows']} | "
            f"{row['rows_ms'][0]:.3f} | {_percent(row['share'], '')} | {_percent(row['within'], '+')} | "
            f"{verdicts(row['goals'])} |"
        )
    lines += [
        "",
        f"Medians (lowest to highest) of {result['rounds']} rounds in turns, {result['dtype']}, scale "
        f"{result['scale']:g} of the shapes' heads, on {result['device']}. One layer's forward against the attention "
        "of the last so many tokens to all, over all heads, in float32. A layer's time grows with the square of its "
        "width and that of the rows with the width, so a smaller scale shows a larger share.",
        "",
        f"`{result['command']}`",
    ]
    return "\n".join(lines) + "\n"


def _percent(values: Sequence[float], sign: str) -> str:
    median, low, high = (f"{100 * value:{sign}.2f}" for value in values)
    return f"{median} % ({low} to {high})"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.speed.rows", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help=f"{' and '.join(NAMES)} unless given")
    parser.add_argument("--scale", type=float, default=SCALE, help="share of a shape's heads and layers, in (0, 1]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--rounds", type=int, default=15, help="of every measurement")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of row_costs.*")
    options = parser.parse_args(given)
    at_least(parser, options, rounds=1, threads=1)
    if not 0 < options.scale <= 1:
        parser.error(f"--scale {options.scale} is outside (0, 1]")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and torch finds none: use cpu")
    return options


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(options.threads)
    device, dtype = usable(options.device), default_dtype(options.dtype, options.device)
    names = options.shape or list(NAMES)
    words = [("shape", name) for name in names]
    words += [("scale", options.scale), ("device", device), ("dtype", dtype), ("rounds", options.rounds)]
    words += [("threads", options.threads)]
    result = {
        **where(device), "dtype": dtype, "scale": options.scale, "rounds": options.rounds,
        "command": shlex.join(["python", "-m", "tokenprune.eval.speed.rows"]
                              + [text for name, value in words for text in (f"--{name}", str(value))]),
        "rows": measure(names, scale=options.scale, dtype=dtype, device=device, rounds=options.rounds),
    }  # fmt: skip
    publish(options.out, "row_costs" + (f"_{device}" if device != "cpu" else ""), indented(result), table(result))


if __name__ == "__main__":
    main()

"""The clockwork: dense model, policies and oracles take turns, on one device, round by round.

A turn is one greedy answer by forwards of the model, without what `generate` does around them: the first token from
pixels (TTFT), then the others on its cache. The device is waited for before and behind each of the two. Where the time
of the first token goes is measured in turns of their own, in which the device is waited for in between, too.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...adapters import lookup, supported
from ...errors import InvalidArgumentError, UnsupportedPolicyError
from ...policies import Policy
from ...policies.layer import LayerPolicy
from ...policies.vision import VisionPolicy
from ...report import Report
from ...stages.parts import Parts, find_parts
from ...wrap import Handle, wrap
from .. import specs
from ..clock import in_turns
from .build import QUESTION, Subject
from .oracle import INSIDE, Oracle, around, checked, watched

DENSE = "dense"


@dataclass
class Row:
    """A policy (none: the dense model) on a batch, and what is known of it before anything is timed."""

    policies: list[Policy]
    batch: int
    report: Report | None = None
    kept: int = 0
    total: int = 0
    kv_bytes: int | None = None
    oracle: Oracle | None = None
    apart: float | None = None
    without: str = ""  # why there is no oracle
    turns: list[Turn] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    ideal: list[float] = field(default_factory=list)  # seconds of the oracle

    @property
    def name(self) -> str:
        return specs.text([_bare(one) for one in self.policies]) if self.policies else DENSE


@dataclass(frozen=True)
class Turn:
    """Seconds to the first token, of the others, and bytes of the device's memory in use at most: weights, inputs and
    what the answer takes. Notes of the oracles wait on the CPU meanwhile, or every row would count those of all."""

    first: float
    others: float
    peak: int | None


@dataclass(frozen=True)
class Split:
    """Seconds of the tower with the projector, of the selection, and of the language model without it."""

    vision: float
    selection: float
    language: float


class Bench:
    """Rows on one subject.

    Args:
        new: tokens of an answer.
    """

    def __init__(self, subject: Subject, new: int):
        self.subject, self.new, self.model = subject, new, subject.model
        self.parts: Parts = find_parts(subject.model, lookup, supported())
        self.device, self._given = subject.model.device, {}
        signature = inspect.signature(type(subject.model).forward).parameters
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in signature else {}

    @torch.inference_mode()
    def probe(self, policies: list[Policy], batch: int) -> Row:
        """A row, with everything about it that takes no clock.

        Raises:
            InvalidArgumentError: it is to keep more tokens than there are.
            UnsupportedPolicyError: the policy needs what this model cannot give, or videos.
        """
        row = Row(policies, batch)
        for one in policies:
            if "image" not in one.kinds:
                raise UnsupportedPolicyError(
                    f"policy={one.name!r} prunes videos only, and what is measured here is a picture: give another."
                )
            counted = isinstance(one.keep, int) and not isinstance(one, VisionPolicy)  # there, patches are counted
            if counted and one.keep > self.subject.tokens:
                raise InvalidArgumentError(
                    f"keep={one.keep} is above the {self.subject.tokens} visual tokens of the picture: give fewer."
                )
        inputs = self._inputs(batch)
        inside = any(isinstance(one, LayerPolicy) for one in policies)
        with self._wrapped(policies or ["none"], batch) as handle, watched(self.parts, inside=inside) as noted:
            out = self.model(**inputs, use_cache=True, **self.last)
            row.report = handle.report()
        row.kv_bytes = cached(out.past_key_values)
        row.kept, row.total = self._counts(row)
        if policies and any(isinstance(one, VisionPolicy) for one in policies):
            row.without = INSIDE
        elif policies:
            row.oracle, row.apart, row.without = checked(self.model, self.parts, noted, out.logits[:, -1])
            row.oracle = row.oracle and row.oracle.on("cpu")
        return row

    def _counts(self, row: Row) -> tuple[int, int]:
        """Visual tokens per sample that the last layer reads, and of the picture."""
        report, total = row.report, self.subject.tokens
        if not report.lengths:
            return total, total
        length = report.events[-1].lengths[0] if report.events else report.lengths[0][1]
        return total - (report.lengths[0][0] - length), total

    @torch.inference_mode()
    def measure(self, rows: Sequence[Row], rounds: int, tick: Callable[[], None] = lambda: None) -> None:
        """All rows of one batch size, in turns, so that each round meets the same machine."""
        inputs = self._inputs(rows[0].batch)
        calls: dict[Any, Callable[[], Any]] = {}
        for i, row in enumerate(rows):
            calls[i, "turns"] = partial(self._turn, row, inputs)
            if row.oracle is not None:
                calls[i, "ideal"] = partial(self._ideal, row.oracle)
            calls[i, "splits"] = partial(self._split, row, inputs)
        took = in_turns({key: _then(call, tick) for key, call in calls.items()}, rounds)
        for (i, what), values in took.items():
            setattr(rows[i], what, values)

    def _inputs(self, batch: int) -> dict[str, Tensor]:
        """The same tensors for all rows of a batch size."""
        if batch not in self._given:
            self._given = {batch: self.subject.batch(batch)}
        return self._given[batch]

    def _wrapped(self, policies: list[Any], batch: int, **options: Any) -> Handle:
        handle = wrap(self.model, policies, tokenizer=self.subject.tokenizer, **options)
        handle.instruction = QUESTION
        handle.image_sizes = self.subject.sizes and self.subject.sizes * batch
        return handle

    def _turn(self, row: Row, inputs: dict[str, Tensor]) -> Turn:
        if not row.policies:
            return self._answer(inputs)
        with self._wrapped(row.policies, row.batch):
            return self._answer(inputs)

    def _answer(self, inputs: dict[str, Tensor]) -> Turn:
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        begun = self._now()
        out = self.model(**inputs, use_cache=True, **self.last)
        token = out.logits[:, -1:].argmax(-1)
        first = self._now()
        for _ in range(self.new - 1):
            out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        end = self._now()
        return Turn(first - begun, end - first, torch.cuda.max_memory_allocated(self.device) if cuda else None)

    def _ideal(self, oracle: Oracle) -> float:
        oracle = oracle.on(self.device)  # a copy for this turn
        begun = self._now()
        oracle().argmax(-1)
        return self._now() - begun

    def _split(self, row: Row, inputs: dict[str, Tensor]) -> Split:
        vision, started = [], []

        def encoding(method: Callable, args: tuple, kwargs: dict) -> Any:
            begun = self._now()
            out = method(*args, **kwargs)
            vision.append(self._now() - begun)
            return out

        def starts(module: Any, args: tuple) -> None:
            started.append(self._now())

        # without a policy there is nothing to wrap, nor to select
        handle = self._wrapped(row.policies, row.batch, timing=True) if row.policies else None
        hook = self.parts.decoder.register_forward_pre_hook(starts)
        try:
            with around(self.parts.outer, encoding):
                self.model(**inputs, use_cache=True, **self.last)
            language = self._now() - started[0]
            report = handle.report() if handle else None
        finally:
            hook.remove()
            if handle:
                handle.remove()
        if report is None:
            return Split(sum(vision), 0.0, language)
        within = sum(event.event_ms or 0.0 for event in report.events) / 1000
        return Split(sum(vision), (report.selection_ms or 0.0) / 1000 + within, language - within)

    def _now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()


def _then(call: Callable[[], Any], tick: Callable[[], None]) -> Callable[[], Any]:
    def both() -> Any:
        answer = call()
        tick()
        return answer

    return both


def _bare(policy: Policy) -> Policy:
    """Without its budget, which has a column of its own."""
    return replace(policy, keep=None) if "keep" in {one.name for one in fields(policy)} else policy


def cached(cache: Any) -> int | None:
    """Bytes of keys and values; None where the cache does not lay them out by layers."""
    layers = getattr(cache, "layers", None)
    if layers is None:
        return None
    held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(values.nbytes for values in held if isinstance(values, Tensor))


def middle(values: Sequence[float]) -> list[float]:
    """Median, lowest and highest."""
    return [statistics.median(values), min(values), max(values)]

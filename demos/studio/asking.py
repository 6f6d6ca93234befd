"""A question asked twice, dense and pruned: answers as they grow, the time of each part, what was kept."""

from __future__ import annotations

import copy
import queue
import statistics
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from tokenprune import LayerPolicy, Policy, ProjectorPolicy, Report, wrap
from tokenprune.encoding import encode, frames_are_images
from tokenprune.errors import InputError, TokenPruneError
from tokenprune.eval.stopwatch import Stopwatch

from .models import EMBEDDED, Models
from .uploads import Given

PARTS = ("tower", "selection", "prefill", "decode")
SHORT, RUNS = 1000.0, 5  # what takes less milliseconds is asked that often, and the medians are told


@dataclass(frozen=True)
class Question:
    """What is asked, of what, with which model; `new`: tokens of the longest answer.

    The embedded models know answers of one word and its end, and go on at random.
    """

    given: Given
    text: str
    model: str
    new: int

    def __post_init__(self):
        if not (self.text or "").strip():
            raise InputError("The question is empty: ask something about the picture.")

    @property
    def longest(self) -> int:
        return min(self.new, 2) if self.model == EMBEDDED else self.new


@dataclass(frozen=True)
class Answer:
    """What is known of an answer so far.

    Attributes:
        text: so far.
        ms: milliseconds of each of PARTS, once it is complete.
        rate: further tokens per second, None where there was no further one.
        report: what was pruned; None of the dense model.
        scores: what the last policy chose by, flat over all visual tokens, NaN where one had left before; None without.
        error: why there is no answer, else empty.
    """

    text: str = ""
    ms: dict[str, float] = field(default_factory=dict)
    rate: float | None = None
    report: Report | None = None
    scores: torch.Tensor | None = None
    error: str = ""

    @property
    def first_ms(self) -> float:
        """To the first token."""
        return sum(ms for part, ms in self.ms.items() if part != "decode")


class Asker:
    """Answers one question after the other: a model is wrapped by one at a time, and unwrapped behind it."""

    def __init__(self):
        self._models, self._turn = Models(), threading.Lock()

    def ask(self, question: Question, ways: dict[str, list[Policy]]) -> Iterator[tuple[str, Answer]]:
        """(name of a way, its answer so far) for every way in turn; no policies: the dense model.

        Whoever stops reading stops it. A way that cannot be gone says why, and the others are.

        Raises:
            TokenPruneError: the model cannot be loaded, or cannot read this.
        """

        def work(emit: Callable[[tuple[str, Answer]], None]) -> None:
            with self._turn:
                video = bool(question.given.videos)
                model, processor = self._models.get(question.model, video=video)
                one = _Prepared(model, processor, question)
                for name, policies in ways.items():
                    try:
                        one.answer(policies, lambda answer, name=name: emit((name, answer)))
                    except TokenPruneError as error:
                        emit((name, Answer(error=str(error))))

        return _threaded(work)


class _Prepared:
    """A question, encoded for a model."""

    def __init__(self, model: Any, processor: Any, question: Question):
        given = question.given
        self.model, self.processor, self.question = model, processor, question
        self.inputs, self.placed = encode(processor, model, question.text, given.pictures, given.videos)
        self.options = {"images_are_frames": frames_are_images(self.inputs, given.pictures, given.videos)}

    def answer(self, policies: list[Policy], emit: Callable[[Answer], None]) -> None:
        if not policies:
            self._generate(emit)
            return
        policies, noted = list(policies), []
        if isinstance(policies[-1], (ProjectorPolicy, LayerPolicy)):
            policies[-1] = _watched(policies[-1], noted)
        tokenizer = getattr(self.processor, "tokenizer", None)
        with wrap(self.model, policies, tokenizer=tokenizer, timing=True, **self.options) as handle:
            handle.instruction = self.question.text if self.placed else None
            given = self.question.given
            handle.image_sizes = None if given.videos else [picture.size for picture in given.pictures]
            self._generate(emit, handle.report, noted)

    def _generate(
        self,
        emit: Callable[[Answer], None],
        report: Callable[[], Report] | None = None,
        noted: list[torch.Tensor] | None = None,
    ) -> None:
        emit(Answer())
        self._run(1, None)  # the first is slow for other reasons
        if noted:
            noted.clear()
        told = []

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                told.append(text)

        class Stop(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> torch.Tensor:
                emit(Answer("".join(told).strip()))  # which raises if nobody reads any more
                return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        further, ms = self._run(
            self.question.longest,
            report,
            streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            stopping_criteria=StoppingCriteriaList([Stop()]),
        )
        scores = torch.cat([one.flatten() for one in noted]) if noted else None
        runs = [ms]
        while len(runs) < RUNS and sum(ms.values()) < SHORT:
            runs.append(self._run(self.question.longest, report)[1])
        ms = {part: statistics.median(one[part] for one in runs) for part in PARTS}
        rate = 1000 * further / ms["decode"] if further else None
        emit(Answer("".join(told).strip(), ms, rate, report() if report else None, scores))

    def _run(self, longest: int, report: Callable[[], Report] | None, **options: Any) -> tuple[int, dict[str, float]]:
        """Further tokens, and milliseconds of each of PARTS."""
        with Stopwatch(self.model) as watch:
            self.model.generate(**self.inputs, max_new_tokens=longest, do_sample=False, **options)
        done, selection, within = report() if report else None, 0.0, 0.0
        if done is not None:
            within = sum(event.event_ms or 0.0 for event in done.events)
            selection = (done.selection_ms or 0.0) + within
        parts = (1000 * watch.tower, selection, max(0.0, 1000 * watch.prefill - within), 1000 * watch.decode)
        return watch.further, dict(zip(PARTS, parts, strict=True))


def _watched(policy: Policy, noted: list[torch.Tensor]) -> Policy:
    """The policy, and the scores of all tokens of each of its units noted, at the places the tokens came from."""

    def select(tokens: Any, k: int) -> Any:
        answer = policy.select(tokens, k)
        if answer.scores is not None:
            scores = answer.scores.float().cpu()
            if (place := getattr(tokens, "place", None)) is not None:  # some of the unit's tokens have left before
                whole = torch.full((len(scores), tokens.total), torch.nan)
                scores = whole.scatter(1, place.cpu(), scores)
            noted.append(scores)
        return answer

    watched = copy.copy(policy)
    watched.select = select
    return watched


class _Left(Exception):
    """Nobody reads any more."""


def _threaded(work: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
    """What `work` emits, which goes on in a thread of its own; it is stopped where its next `emit` finds no reader."""
    made: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    gone = threading.Event()

    def emit(value: Any) -> None:
        if gone.is_set():
            raise _Left
        made.put(("value", value))

    def run() -> None:
        try:
            work(emit)
            made.put(("end", None))
        except _Left:
            pass
        except BaseException as error:
            made.put(("error", error))

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        gone.set()

"""Looks on while a class of lmms-eval answers: which documents each `generate` is about, and what it saw of them.

Every class reads documents as `self.task_dict[task][split][doc_id]`, calls `self.model.generate`, and hands each answer
to `self.cache_hook`. On these three, of this one instance, we listen while it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from lmms_eval.api.instance import Instance
from loguru import logger

from ...errors import TokenPruneError
from ...report import Report
from ...wrap import Handle
from ..instead import instead
from .journal import Entry

Document = tuple[str, Any]  # task and doc_id


def said(error: BaseException) -> str:
    """An error in one line, by its type."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0].rstrip('.')}"


class Stopped(BaseException):
    """An error of ours on its way out: classes of lmms-eval answer "" to any `Exception` and go on."""


class Watch:
    """`with Watch(lm, model, handle, requests, note): lm answers`

    Args:
        lm: instance of a class of lmms-eval.
        model: its transformers model.
        handle: what `wrap` gave for the model.
        requests: what it is asked.
        note: called with a request and its entry as soon as it is answered.

    Attributes:
        failures: errors that the class took for empty answers.
        seen: document -> what the model saw of its pictures, see `seen`.
    """

    def __init__(
        self,
        lm: Any,
        model: Any,
        handle: Handle,
        requests: Sequence[Instance],
        note: Callable[[Instance, Entry], None],
    ):
        self.lm, self.model, self.handle, self.note = lm, model, handle, note
        self.requests = {(one.task_name, one.doc_id): one for one in requests}
        self.failures: list[str] = []
        self.seen: dict[Document, dict[str, Any] | None] = {}
        self._read: list[Document] = []  # since the last `generate`
        self._answered: list[Document] = []  # of the last `generate`, before their texts are known

    def __enter__(self) -> Watch:
        lm = self.lm
        self._before, self._generate = (lm.task_dict, lm.cache_hook), self.model.generate
        lm.task_dict = {name: _Heard(data, (name,), self._read.append) for name, data in lm.task_dict.items()}
        lm.cache_hook = self
        self._listening = ExitStack()
        self._listening.enter_context(instead(self.model, "generate", self.generate))
        self._listening.callback(self.model.register_forward_pre_hook(self._asks, prepend=True).remove)
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.close()
        self.lm.task_dict, self.lm.cache_hook = self._before

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, told what its prompts ask."""
        documents, rows = self._documents(), _rows(args, kwargs)
        if len(documents) != rows:  # some read a document several times
            documents = list(dict.fromkeys(documents))
        if len(documents) != rows:
            logger.warning(f"{type(self.lm).__name__} reads documents out of turn: tokens are not told per document")
            documents = []
        self.handle.instruction = [_question(self.requests[one]) for one in documents] or None
        self._answered = []
        try:
            answer = self._generate(*args, **kwargs)
        except TokenPruneError as error:
            raise Stopped from error
        except Exception as error:
            self.failures.append(said(error))
            raise
        pictures = any("pixel" in name and value is not None for name, value in kwargs.items())
        if documents:
            counts = seen(self.handle.report(), len(documents)) if pictures else [None] * len(documents)
            self.seen |= dict(zip(documents, counts, strict=True))
        self._answered = documents
        return answer

    def _documents(self) -> list[Document]:
        """Read since the last time; none if any was not asked about."""
        read, self._read[:] = list(self._read), []
        return read if all(one in self.requests for one in read) else []

    def _asks(self, module: Any, args: tuple) -> None:
        """A forward without `generate`: of a likelihood, whose text goes on with the answer."""
        if documents := list(dict.fromkeys(self._documents())):
            self.handle.instruction = [_question(self.requests[one]) for one in documents]

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """The cache hook: answers come in the order of the rows."""
        if self._answered and kind == "generate_until" and isinstance(answer, str):
            document = self._answered.pop(0)
            self.note(self.requests[document], Entry(answer, self.seen[document]))
        self._before[1].add_partial(kind, request, answer)


class _Heard:
    """Data sets, splits and documents by their keys; `heard` is told of every document that is read."""

    def __init__(self, inner: Any, path: tuple, heard: Callable[[Document], None]):
        self._inner, self._path, self._heard = inner, path, heard

    def __getitem__(self, key: Any) -> Any:
        if len(self._path) == 1:
            return _Heard(self._inner[key], (*self._path, key), self._heard)
        if isinstance(key, int):
            self._heard((self._path[0], key))
        return self._inner[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self):
        return iter(self._inner)


def _rows(args: tuple, kwargs: dict[str, Any]) -> int | None:
    """Prompts of a call of `generate`."""
    for value in (*args[:1], *(kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds"))):
        if value is not None:
            return len(value)
    return None


def _question(request: Instance) -> str:
    """What a request asks, without the places of its pictures."""
    text = request.args[0]
    for mark in ("<image>", "<video>"):
        text = text.replace(mark, "")
    return text.strip()


def seen(report: Report, rows: int) -> list[dict[str, Any] | None]:
    """For each prompt of a forward {"kept", "total", "prefill_flops"}; None where it had no pictures.

    "kept" is the number of visual tokens that a layer of the language model reads, on average over its layers;
    "prefill_flops" the estimated share of the dense FLOPs there, None if its sizes are not known.
    """
    copies = max(len(report.lengths) // rows, 1)  # beams repeat a prompt
    found: list[dict[str, Any] | None] = []
    for row in range(rows):
        sample = row * copies
        units = [unit for unit in report.units if unit.sample == sample]
        kept, total = sum(unit.kept for unit in units), sum(unit.total for unit in units)
        if report.events and report.shape is not None:
            read = sum(n * layers for n, layers in report.stretches(sample)) / report.shape.layers
            kept = round(read - (report.lengths[sample][0] - total), 2)
        found.append({"kept": kept, "total": total, "prefill_flops": _share(report)} if units else None)
    return found


def _share(report: Report) -> float | None:
    cost = report.cost() or {}
    if "prefill_flops_dense" not in cost:
        return None
    return round(cost["prefill_flops_pruned"] / cost["prefill_flops_dense"], 4)

"""Answers on disk as they come, so that a run that is stopped goes on where it was.

lmms-eval keeps the answers of a task in memory until the last one is there; its cache is written after that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.caching.response_cache import canonicalize_gen_kwargs, extract_gen_kwargs, is_deterministic

from ...errors import InputError
from ..files import replaced

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Entry:
    """One answer, and what the model saw of the pictures: see `watch.seen`; None where that is not known."""

    answer: str
    visual: dict[str, Any] | None = None


class Journal:
    """Answers of one configuration in a folder: `answers.<rank>.jsonl`, a line each, of every process one file.

    Args:
        settings: what the answers depend on. Answers of other settings are not gone on from.
        fresh: forget what is there.

    Raises:
        InputError: the folder holds answers of other settings, or cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, rank: int = 0, fresh: bool = False):
        self.folder, self.file = folder, folder / f"answers.{rank}.jsonl"
        self._known: dict[str, Entry] = {}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if fresh and rank == 0:
                for file in [folder / SETTINGS, *folder.glob("answers.*.jsonl")]:
                    file.unlink(missing_ok=True)
            answered = any(file.stat().st_size for file in folder.glob("answers.*.jsonl"))
            if (folder / SETTINGS).exists() and answered and not fresh:
                self._check(settings)
            elif rank == 0:
                replaced(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")

    def _check(self, settings: dict[str, Any]) -> None:
        text = (self.folder / SETTINGS).read_text()
        try:
            earlier = dict(json.loads(text))
        except (TypeError, ValueError):
            raise InputError(
                f"out={str(self.folder / SETTINGS)!r} is none of ours: give another folder or --fresh."
            ) from None
        settings = json.loads(json.dumps(settings))
        for name in sorted(earlier.keys() | settings.keys()):
            if earlier.get(name) != settings.get(name):
                raise InputError(
                    f"out={str(self.folder)!r} holds answers with {name}={earlier.get(name)!r}, not "
                    f"{settings.get(name)!r}: give another folder, or --fresh to forget them."
                )

    def read(self) -> None:
        """Takes in what every process wrote so far. A last line that was cut off is left out."""
        for file in sorted(self.folder.glob("answers.*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["key"]] = Entry(entry["answer"], entry["visual"])
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue

    def get(self, key: str | None) -> Entry | None:
        """The answer to the request of that key, if there is one."""
        return self._known.get(key)

    def note(self, key: str | None, entry: Entry) -> None:
        """Keeps an answer.

        Raises:
            InputError: the disk is full or the like. Answers before this one are kept.
        """
        if key is None or self._known.get(key) == entry:
            return
        self._known[key] = entry
        line = json.dumps({"key": key, **vars(entry)})
        with writing(self.folder), self.file.open("a") as file:
            file.write(("" if _ended(self.file) else "\n") + line + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within, an OSError becomes one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"out={str(folder)!r} cannot be written ({error.strerror or error}): make room or give another folder; the "
            "same command goes on with the answers that are there."
        ) from None


def documents(data: Mapping[str, Any]) -> Callable[[Instance], str]:
    """What tells the document of a request from others: a hash of its row, pictures as they are stored.

    Args:
        data: task -> split -> documents, as lmms-eval gives them.
    """
    stored: dict[tuple, Any] = {}

    def told(request: Instance) -> str:
        place = request.task_name, request.args[-1]
        if place not in stored:
            rows = data[request.task_name][request.args[-1]]
            stored[place] = rows.with_format("arrow") if hasattr(rows, "with_format") else rows
        row = stored[place][request.doc_id]
        row = row.to_pylist()[0] if hasattr(row, "to_pylist") else row
        return hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()

    return told


def key(request: Instance, document: str = "") -> str | None:
    """Of a request: task, document, what is asked and how. None where asking again may answer otherwise.

    To be called before the request is asked: classes of lmms-eval write into its arguments.
    """
    how = extract_gen_kwargs(request)
    if not is_deterministic(request.request_type, how):
        return None
    asked = [value for value in request.args if isinstance(value, str)]
    text = json.dumps(
        [
            *(request.request_type, request.task_name, request.doc_id, request.idx, document),
            *(asked, canonicalize_gen_kwargs(how)),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _ended(file: Path) -> bool:
    """Whether a file ends with a whole line."""
    with file.open("rb") as end:
        end.seek(0, os.SEEK_END)
        if end.tell() == 0:
            return True
        end.seek(-1, os.SEEK_END)
        return end.read(1) == b"\n"

"""What a search has found so far, in `tune.json`: a run that is stopped goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..files import replaced
from .search import Evaluate, Outcome, Refused

FILE, RUNS = "tune.json", "runs"


class State:
    """Settings, times, refusals and values of every document in a folder; written whole at every change.

    Attributes:
        times: candidate -> time as a multiple of the dense model's; empty before they are measured.
        refused: candidate -> why the model cannot serve it.

    Args:
        settings: what the search depends on, ready for JSON.
        fresh: forget what the folder holds of an earlier search: the file, and its folder of runs.

    Raises:
        InputError: the folder holds a search with other settings, or a file that cannot be read, or cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, fresh: bool = False):
        self.folder, self.file = folder, folder / FILE
        self.settings = json.loads(json.dumps(settings))
        self._values: dict[str, list[list[float]]] = {}
        self.times: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        self._result: dict[str, Any] = {}
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out={str(folder)!r} is a file: give the path of a folder.")
        if fresh:
            self.file.unlink(missing_ok=True)
            shutil.rmtree(folder / RUNS, ignore_errors=True)
        if self.file.exists():
            self._take(_read(self.file))
        self.save()  # a folder that cannot be written is told at once

    def _take(self, earlier: dict[str, Any]) -> None:
        found = earlier.get("settings", {})
        if found != self.settings and not earlier["values"]:
            return  # no document was answered yet: nothing is lost
        for name in sorted(found.keys() | self.settings.keys()):
            if found.get(name) != self.settings.get(name):
                raise InputError(
                    f"out={str(self.folder)!r} holds a search with {name}={found.get(name)!r}, not "
                    f"{self.settings.get(name)!r}: give another folder, or --fresh to forget that one."
                )
        self.times, self.refused = earlier["times"], earlier["refused"]
        self._values, self._result = earlier["values"], earlier["result"]

    def save(self) -> None:
        """
        Raises:
            InputError: the folder cannot be written; what was there before stays.
        """
        facts = {"settings": self.settings, "result": self._result, "refused": self.refused, "times": self.times}
        values = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in self._values.items())
        text = f'{json.dumps(facts, indent=1)[:-2]},\n "values": {{\n{values}\n }}\n}}\n'
        try:
            replaced(self.file, text)
        except OSError as error:
            raise InputError(
                f"out={str(self.folder)!r} cannot be written ({error.strerror or error}): make room or give another "
                "folder; the same command goes on from what is there."
            ) from None

    def measured(self, times: dict[str, float], refused: dict[str, str]) -> None:
        self.times, self.refused = times, refused
        self.save()

    def remembering(self, evaluate: Evaluate) -> Evaluate:
        """`evaluate`, asked only for what is not known yet."""

        def known_or_new(text: str, offset: int, count: int) -> np.ndarray:
            if text in self.refused:
                raise Refused(self.refused[text])
            name = f"{text} from {offset}"
            if len((self._values.get(name) or [[]])[0]) < count:
                try:
                    self._values[name] = evaluate(text, offset, count).tolist()
                except Refused as refused:
                    self.refused[text] = str(refused)
                    raise
                finally:
                    self.save()
            return np.array(self._values[name])[:, :count]

        return known_or_new

    def noting(self, then: Callable[[Outcome], None] = lambda _: None) -> Callable[[Outcome], None]:
        """What `search` tells its decisions to."""

        def note(outcome: Outcome) -> None:
            self._result = summary(outcome)
            self.save()
            then(outcome)

        return note


def summary(outcome: Outcome) -> dict[str, Any]:
    """Ready for JSON."""
    return {
        "chosen": outcome.chosen and outcome.chosen.text,
        "dense": outcome.dense,
        "dense_heldout": outcome.dense_heldout,
        "checked": [row.text for row in outcome.checks],
        "front": [row.text for row in outcome.front],
        "documents": outcome.spent,
        "documents_of_all": outcome.exhaustive,
        "rows": [asdict(row) for row in outcome.rows],
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
        if not {"settings", "times", "refused", "values", "result"} <= found.keys():
            raise ValueError
    except (OSError, ValueError, AttributeError):
        raise InputError(
            f"out={str(file)!r} is no search that can be gone on with: give another folder or --fresh."
        ) from None
    return found

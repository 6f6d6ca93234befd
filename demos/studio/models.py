"""Models by name: the embedded ones, and one more at a time."""

from __future__ import annotations

from typing import Any

from tokenprune.checkpoints import load
from tokenprune.errors import InputError
from tokenprune.eval import shapes

EMBEDDED = "embedded"


class Models:
    """Keeps what was loaded: the embedded models, and the last other one."""

    def __init__(self):
        self._embedded: dict[bool, tuple[Any, Any]] = {}
        self._other: tuple[str, tuple[Any, Any]] | None = None

    def get(self, name: str, *, video: bool) -> tuple[Any, Any]:
        """A model and its processor; the embedded one is another for videos.

        Raises:
            InputError: nothing there that can be loaded.
            UnsupportedModelError: no vision-language model.
        """
        name = (name or "").strip()
        if not name:
            raise InputError(f"The model has no name: choose {EMBEDDED!r}, or give a folder or an id of the hub.")
        if name == EMBEDDED:
            if video not in self._embedded:
                folder = shapes.VIDEO_CHECKPOINT if video else shapes.CHECKPOINT
                self._embedded[video] = load(str(folder), dtype="float32")
            return self._embedded[video]
        if self._other is None or self._other[0] != name:
            self._other = None  # room for the next one first
            self._other = name, load(name)
        return self._other[1]

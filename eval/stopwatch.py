"""Where the time of one `generate` goes: tower, prefill, further tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any

import torch

from ..adapters import lookup, supported
from ..stages.parts import find_parts
from .instead import instead

ENCODERS = ("get_image_features", "get_video_features")


class Stopwatch:
    """Seconds of what a vision-language model does while inside of a `with` block; enter it behind `wrap`.

    Attributes:
        tower: of the vision tower with its projector, wherever `generate` or the forward calls them.
        entered, ended: of each forward, when its decoder began and when the model was done.

    Raises:
        UnsupportedModelError: the decoder of the model is not known.
    """

    def __init__(self, model: torch.nn.Module):
        self.parts = find_parts(model, lookup, supported())
        self.tower, self.entered, self.ended = 0.0, [], []
        self._encoding = False

    def __enter__(self) -> Stopwatch:
        with ExitStack() as stack:
            for name in ENCODERS:
                if (method := getattr(self.parts.outer, name, None)) is not None:
                    timed = wraps(method)(partial(self._encode, method))  # whose signature `generate` asks for
                    stack.enter_context(instead(self.parts.outer, name, timed))
            before = self.parts.decoder.register_forward_pre_hook(lambda *_: self.entered.append(self._now()))
            stack.callback(before.remove)
            behind = self.parts.model.register_forward_hook(lambda *_: self.ended.append(self._now()))
            stack.callback(behind.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def prefill(self) -> float:
        """Of the language model, for the prompt."""
        return self.ended[0] - self.entered[0]

    @property
    def decode(self) -> float:
        """From the first token to the last."""
        return self.ended[-1] - self.ended[0]

    @property
    def further(self) -> int:
        """Tokens behind the first."""
        return len(self.ended) - 1

    def _encode(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._encoding:  # that of videos calls that of images
            return method(*args, **kwargs)
        self._encoding, begun = True, self._now()
        try:
            return method(*args, **kwargs)
        finally:
            self._encoding, self.tower = False, self.tower + self._now() - begun

    def _now(self) -> float:
        if self.parts.model.device.type != "cpu":
            torch.accelerator.synchronize(self.parts.model.device)
        return time.perf_counter()

"""Watching a model encode its images and videos.

All families encode through `get_image_features` and `get_video_features` of the outer module, called by its forward or,
before the forward, by `generate`. These are methods, where no module hook fires, so the instance gets attributes of the
same names that call them and note what went in and what came out. `remove` deletes them again.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Features
from ..errors import UnsupportedModelError
from ..tokens import Tap, looks_inside
from .hook import Hook
from .parts import Parts
from .tower import TowerTaps

ENCODERS = {"get_image_features": "image", "get_video_features": "video"}
PACK = "pack_image_features"


class _Watched:
    """A bound method with something around it. A deep or pickled copy of the module gets the plain method back."""

    def __init__(self, module: nn.Module, name: str, around: Callable[..., Any]):
        self._module, self._name, self._around = module, name, around
        functools.update_wrapper(self, self._plain(module))

    def _plain(self, module: nn.Module) -> Callable[..., Any]:
        return types.MethodType(getattr(type(module), self._name), module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._around(self._plain(self._module), *args, **kwargs)

    def __reduce__(self) -> tuple:
        return getattr, (self._module, self._name)


class FeatureWatch:
    """Notes every encoding of one model, per thread.

    Args:
        parts: of the model.
        needs: what the policies need, asked at every encoding.
        prunes: whether anything is going to be pruned: taps, which cost something, rest where not.
        seen: called with the features of every encoding.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        needs: Callable[[], frozenset],
        prunes: Callable[[], bool],
        seen: Callable[[Features], None],
    ):
        self.parts, self._needs, self._seen = parts, needs, seen
        self._local = threading.local()
        self._hook: Any = None
        taps = sorted((need for need in needs() if isinstance(need, Tap) and need.what != "carrier"), key=repr)
        self.taps = TowerTaps(parts, taps, lambda: self.current if prunes() else None)

    def install(self) -> None:
        outer = self.parts.outer
        for name in (*ENCODERS, PACK):
            if hasattr(type(outer), name):
                around = self._pack if name == PACK else functools.partial(self._encode, ENCODERS[name])
                setattr(outer, name, _Watched(outer, name, around))
        if self.parts.adapter.merger is not None and looks_inside(self._needs()):
            merger = self.parts.module(self.parts.adapter.merger)
            self._hook = merger.register_forward_pre_hook(Hook(self._enter), with_kwargs=True)
        self.taps.install()

    def remove(self) -> None:
        self.taps.remove()
        for name in (*ENCODERS, PACK):
            if isinstance(vars(self.parts.outer).get(name), _Watched):
                delattr(self.parts.outer, name)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @property
    def current(self) -> Features | None:
        return getattr(self._local, "features", None)

    def _encode(self, modality: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.current is not None:  # videos of some families are encoded by the method for images
            return method(*args, **kwargs)
        bound = dict(inspect.signature(method).bind_partial(*args, **kwargs).arguments)
        known = {name: _light(value) for name, value in {**bound, **kwargs}.items()}
        features = self._local.features = Features(modality=modality, arguments=known)
        try:
            output = method(*args, **kwargs)
        finally:
            self._local.features = None
        features.rows = rows_of(output)
        self._seen(features)
        if not isinstance(output, (tuple, Tensor)):
            output._tokenprune = features  # generate hands this very object to the forward
        return output

    def _pack(self, method: Callable[..., Any], image_features: Any, *args: Any, **kwargs: Any) -> Any:
        """Push numbers through the model's own packing: what comes out tells where each row came from."""
        features = self.current
        if features is not None and not features.packed:
            newline = kwargs.get("image_newline")
            newline = None if newline is None else torch.full((1,), -1.0, dtype=torch.float64)
            numbers = {**kwargs, "image_newline": newline}
            first, tiles = 0, []
            for tile in image_features:
                count, features.tile = tile.shape[0] * tile.shape[1], tile.shape[1]
                tiles.append(torch.arange(first, first + count).double().view(tile.shape[0], tile.shape[1], 1))
                first += count
            packed = method(tiles, *args, **numbers)
            packed = packed[0] if isinstance(packed, tuple) else packed
            features.packed = [row[:, 0].cpu() for row in packed]
        return method(image_features, *args, **kwargs)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.current is not None:
            self.current.entered.append((args[0] if args else next(iter(kwargs.values()))).detach())


def known_features(given: dict[str, Any]) -> dict[str, Features]:
    """modality -> what was noted about `mm_encoder_outputs` among the arguments of a call.

    Read where a call enters the model: further down, accelerate hands on copies of them, which lack the notes.
    """
    encoded = given.get("mm_encoder_outputs") or {}
    return {modality: value._tokenprune for modality, value in encoded.items() if hasattr(value, "_tokenprune")}


def _light(value: Any) -> Any:
    """Pixels without their memory, since features outlive them: only their shape is read. Grids and sizes are fetched
    now, while there is nothing to wait for."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("meta" if value.is_floating_point() else "cpu")


def rows_of(output: Any) -> list[int]:
    """Rows per entry of what an encoder answered: a list or tensor of features, or an output that holds one."""
    features = output
    if not isinstance(output, Tensor) and type(output) not in (list, tuple):
        features = output.pooler_output
        if features is None:
            features = getattr(output, "last_hidden_state", None)
        if features is None and getattr(output, "deepstack_features", None):  # granite4_vision: [(layer, per image)]
            features = output.deepstack_features[0][1]
    if features is None:
        raise UnsupportedModelError(
            "the model's encoder answered no features: report it with your transformers version"
        )
    if isinstance(features, Tensor) and features.ndim == 2:
        return [features.shape[0]]
    return [feature.numel() // feature.shape[-1] for feature in features]

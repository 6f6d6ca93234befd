"""The rows of the accuracy table: every registered policy with its defaults, and the variants worth a row.

Nothing here is tuned on the held-out scenes: defaults are those of the papers, and where a choice has no default that
would fit the embedded model (the sign of CLIP relevance, an estimator), every choice has a row.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from .. import ClipRelevance, Policy
from .inside import Inside, inside_rows
from .training_free import training_free

STAGES = ("projector", "processor")
PIXELS = 8  # along a side of one visual token of the embedded model


def configurations(clip: tuple | None, seeds: int) -> dict[str, list[Policy | Inside]]:
    """Row -> policies without a budget, several where the mean over seeds counts; at the end those inside the decoder.

    Args:
        clip: CLIP model and tokenizer that belong to the tower; without, rows in need of them are left out.
        seeds: of the random policy.
    """
    rows: dict[str, list[Policy | Inside]] = {}
    for name, cls in training_free().items():
        if "image" in cls.kinds and cls.stage in STAGES and name != "none":
            rows |= _variants(name, cls, clip, seeds)
    return rows | inside_rows(seeds)


def _variants(name: str, cls: type[Policy], clip: tuple | None, seeds: int) -> dict[str, list[Policy]]:
    if name == "random":
        return {name: [cls(seed=seed) for seed in range(seeds)]}
    if name == "resize":
        return {name: [cls(multiple=PIXELS)]}
    if name == "cdpruner":
        return {name: [cls()]} | _with_clip(name, cls, clip)
    if name == "trim":
        return {name: [cls()]} | _with_clip(name, cls, clip, similarity="dot")
    if name == "zooprune":
        return {f"{name}, {kind}": [cls(estimator=kind)] for kind in ("zeroth_order", "closed_form", "norm")}
    return {name: [cls()]}


def _with_clip(name: str, cls: type[Policy], clip: tuple | None, **options: Any) -> dict[str, list[Policy]]:
    if clip is None:
        return {}
    model, tokenizer = clip
    return {
        f"{name}, CLIP (sign {sign:+d})": [
            cls(relevance=ClipRelevance(clip=model, tokenizer=tokenizer, sign=sign, **options))
        ]
        for sign in (1, -1)
    }


def described(value: Any) -> str:
    """A policy or a part of one with its settings, `DivPrune(features='projector')`; models by their type."""
    if is_dataclass(value):
        settings = (f"{f.name}={described(getattr(value, f.name))}" for f in fields(value) if f.init)
        return f"{type(value).__name__}({', '.join(settings)})"
    plain = value is None or isinstance(value, (bool, int, float, str, tuple))
    return repr(value) if plain else type(value).__name__

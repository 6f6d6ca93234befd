"""Controls of policies, made from the fields of their classes."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from tokenprune import Policy
from tokenprune.command import SCHEDULES, assignment, make_policy
from tokenprune.describe import default, meanings
from tokenprune.eval import shapes
from tokenprune.registry import get_policy, list_policies

STAGES = {  # in the order in which tokens pass them
    "vision": "In the vision tower",
    "projector": "Behind the projector",
    "layer": "In the language model",
}
FIRST = {"layer": "fastv"}  # chosen at first: what needs no training and answers right most often
NOTHING = "off"
START = {  # fields that a policy cannot do without
    "covipal": {"predictor": str(shapes.PREDICTOR)},
    "debiased": {"inner": "fastv"},
}
COMMON = tuple(field.name for field in dataclasses.fields(Policy))
Kind = typing.Literal["switch", "choice", "whole", "number", "text"]


def names(stage: str) -> list[str]:
    """Policies of a stage, by name."""
    return [name for name in list_policies() if name != "none" and get_policy(name).stage == stage]


@dataclass(frozen=True)
class Knob:
    """A field of a policy that a control on the page can set.

    Attributes:
        kind: of control.
        start: its value at first; a text is written as in Python.
        options: of a choice.
        meaning: what the policy says of it.
    """

    policy: str
    name: str
    kind: Kind
    start: Any
    options: tuple[str, ...] = ()
    meaning: str = ""

    def value(self, shown: Any) -> Any:
        """What the field is to be, given what the control shows; None: as it is by default."""
        if shown is None or shown == self.start or (self.kind == "text" and not shown.strip()):
            return START.get(self.policy, {}).get(self.name)
        if self.kind == "text":
            return assignment(f"{self.name}={shown.strip()}")[1]
        return float(shown) if self.kind == "number" else shown

    def control(self) -> gr.components.Component:
        """On the page. Its key keeps what is in it while other policies are chosen."""
        common = {"label": self.name, "info": self.meaning, "key": f"{self.policy}.{self.name}", "interactive": True}
        common |= {"elem_id": f"{self.policy}-{self.name}"}
        if self.kind == "switch":
            return gr.Checkbox(self.start, **common)
        if self.kind == "choice":
            return gr.Dropdown(list(self.options), value=self.start, **common)
        if self.kind == "text":
            return gr.Textbox(self.start, **common)
        return gr.Number(self.start, precision=0 if self.kind == "whole" else None, **common)


def knobs(policy: str) -> list[Knob]:
    """Of all fields but `keep`, its own first; a field that takes an object has none, and is set in Python."""
    cls = get_policy(policy)
    hints, about, found = typing.get_type_hints(cls), meanings(cls), []
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in COMMON):
        if field.name == "keep" or not field.init:
            continue
        kind, options = _kind(hints[field.name])
        if kind is None:
            continue
        start = START.get(policy, {}).get(field.name, field.default)
        if kind == "text":
            start = start if isinstance(start, str) else default(field)
        found.append(Knob(policy, field.name, kind, start, options, about.get(field.name, "")))
    return found


def _kind(hint: Any) -> tuple[Kind | None, tuple[str, ...]]:
    """The control that fits an annotation, and what it offers; None where nothing that can be written fits."""
    if typing.get_origin(hint) is typing.Literal:
        return "choice", typing.get_args(hint)
    if hint in (bool, int, float):
        return {bool: "switch", int: "whole", float: "number"}[hint], ()
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for option in typing.get_args(hint) if union else (hint,):
        if option in (int, float, str) or typing.get_origin(option) in (tuple, list, typing.Literal):
            return "text", ()
    return None, ()


def policy(name: str, share: float, shown: Sequence[Any] = (), made: Sequence[Knob] = ()) -> Policy:
    """The policy that the controls ask for.

    Args:
        share: of the tokens that are kept, in percent; without effect where a field says how many.
        shown: values of the controls of `made`.

    Raises:
        TokenPruneError: a value that the policy does not take.
    """
    given = {knob.name: knob.value(value) for knob, value in zip(made, shown, strict=True)}
    given = START.get(name, {}) | {field: value for field, value in given.items() if value is not None}
    budget = {} if SCHEDULES & set(given) else {"keep": share / 100}
    return make_policy(name, budget | given)

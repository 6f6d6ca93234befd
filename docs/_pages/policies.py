"""What the classes of policies say about themselves, in the parts of a page."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from functools import cached_property

import tokenprune
from tokenprune.describe import default, joined, meanings, needs, paragraphs
from tokenprune.policies import Policy

STAGES = {
    "projector": "In front of the language model",
    "layer": "Inside the language model",
    "vision": "Inside the vision transformer",
    "processor": "Before the processor",
    "skip": "Skipping blocks of a language model",
    "encoder": "Before the first block of a text encoder",
}
COMMON = tuple(field.name for field in dataclasses.fields(Policy))
BUDGET_STAGES = ("projector", "layer", "vision", "processor")  # whose budget is `keep`
PARTED = re.compile(r"(Attributes|Args|Defaults|Source|Differs)\b")
PROBES = (-1, 1_000_000, "?")


class Described:
    """A registered policy, as its page has it."""

    def __init__(self, name: str):
        self.name, self.cls = name, tokenprune.get_policy(name)
        self.blocks = paragraphs(self.cls)

    @cached_property
    def made(self) -> Policy:
        return self.cls()

    @property
    def summary(self) -> str:
        return joined(self.blocks[0])

    @property
    def rule(self) -> list[str]:
        """Paragraphs between the summary and what is said of fields, defaults and sources."""
        return [joined(block) for block in self.blocks[1:] if not PARTED.match(block)]

    def about(self, word: str) -> list[str]:
        return [joined(block) for block in self.blocks if re.match(word, block)]

    @property
    def source(self) -> list[str]:
        """Where it is from; a class that points to another says what that one says, too."""
        found = self.about("Source")
        for base in self.cls.__mro__[1:]:
            if any("arXiv" in one or "none" in one for one in found):
                break
            found += [joined(block) for block in paragraphs(base) if block.startswith("Source")]
        return [re.sub(r"^Source: ", "", one) for one in found]

    @property
    def module(self) -> str:
        """First paragraph of the docstring of its module."""
        return joined(inspect.cleandoc(sys.modules[self.cls.__module__].__doc__ or "").split("\n\n")[0])

    @property
    def needs(self) -> str:
        return needs(self.made)

    @property
    def fields(self) -> list[dataclasses.Field]:
        """Its own; those of the budget are every policy's."""
        every = (field for field in dataclasses.fields(self.cls) if field.init)
        return [field for field in every if field.name not in COMMON]

    @cached_property
    def meanings(self) -> dict[str, str]:
        return meanings(self.cls)

    @property
    def budgeted(self) -> bool:
        return self.cls.stage in BUDGET_STAGES

    @property
    def kinds(self) -> str:
        *first, last = (f"{kind}s" for kind in sorted(self.made.kinds))
        return f"{', '.join(first)} and {last}" if first else last

    def default(self, field: dataclasses.Field) -> str:
        return default(field)

    def type(self, field: dataclasses.Field) -> str:
        return field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)

    def range(self, field: dataclasses.Field) -> str:
        """What the class takes, in the words in which it refuses something else."""
        hint = typing.get_type_hints(self.cls)[field.name]
        if hint is bool:
            return "True or False"
        said = filter(None, (self._refused(field.name, probe) for probe in PROBES))
        found = next(said, "") or "as its type says"
        optional = type(None) in typing.get_args(hint) and field.default is None and found != "as its type says"
        return found if not optional or "None" in found else f"{found}, or None"

    def _refused(self, field: str, value: object) -> str:
        """What the class says it takes, when it is given this value; empty if it says nothing of this field."""
        try:
            self.cls(**{field: value})
        except tokenprune.errors.TokenPruneError as error:
            name, _, _ = str(error).partition("=")
            return allowed(str(error)) if field.endswith(name) else ""
        except TypeError:
            return ""
        return ""

    def usage(self) -> str:
        """Lines of Python that wrap a model with it; none for what does not go through `wrap`."""
        if self.cls.stage == "processor":
            return ""
        if self.cls.stage in ("encoder", "skip"):
            given = {"predictor": '"folder"'} if "predictor" in self.cls.__dataclass_fields__ else {}
            given |= {"sparsity": "0.2"} if self.cls.stage == "skip" else {"ratio": "0.5"}
            policy = f"tokenprune.{self.cls.__name__}({', '.join(f'{k}={v}' for k, v in given.items())})"
            model = "encoder" if self.cls.stage == "encoder" else "model"
            return f"import tokenprune\n\nhandle = tokenprune.wrap({model}, {policy})"
        if "predictor" in self.cls.__dataclass_fields__:
            policy = f'tokenprune.{self.cls.__name__}(predictor="folder", keep=0.25)'
            return f"import tokenprune\n\nhandle = tokenprune.wrap(model, {policy})"
        if "inner" in self.cls.__dataclass_fields__:
            policy = "tokenprune.debiased(tokenprune.FastV(keep=0.25))"
            return f"import tokenprune\n\nhandle = tokenprune.wrap(model, {policy})"
        keep = "" if self.made.keep == 1.0 else ", keep=0.25"
        return f'import tokenprune\n\nhandle = tokenprune.wrap(model, "{self.name}"{keep})'


def allowed(message: str) -> str:
    """`"theta=2 is not in (0, 1): give such a float."` -> `"in (0, 1)"`"""
    _, _, told = message.partition(" is ")
    told, _, remedy = told.rstrip(".").partition(": ")
    remedy = re.sub(r"^give |, \(-1,\)$", "", remedy)
    kind = re.sub(r"^(not one of|not|no|neither) ", "", told).replace(" nor", " or")
    if told.startswith("given "):
        return ""
    if told.startswith("no tuple"):
        return f"a {kind}" if remedy in ("", "one") else f"a tuple: {remedy.removeprefix('give ')}"
    if told.startswith(("not a count", "no ")) and remedy and not remedy.endswith(", say"):
        return remedy.replace("one,", f"{kind},", 1)
    return kind


def described() -> list[Described]:
    """All that are registered, by stage."""
    order = list(STAGES)
    every = map(Described, tokenprune.list_policies())
    return sorted(every, key=lambda one: (order.index(one.cls.stage) if one.cls.stage in order else 99, one.name))


def stage_of(one: Described) -> str:
    if one.cls.stage == "projector" and one.made.kinds == {"video"}:
        return "For videos, in front of the language model"
    return STAGES.get(one.cls.stage, one.cls.stage)

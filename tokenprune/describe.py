"""What policies say of themselves, read from their docstrings: paragraphs, meanings of fields, needs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .policies import Policy
    from .policies.base import Need


def paragraphs(cls: type) -> list[str]:
    """Of a class's own docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")


def joined(paragraph: str) -> str:
    """It without its line breaks, but for indented lines."""
    return re.sub(r"\n(?! )", " ", paragraph)


def meanings(cls: type) -> dict[str, str]:
    """Field -> what the class, or else the nearest of its bases, says of it under "Attributes"."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        for paragraph in paragraphs(base):
            found |= attributes(paragraph) if paragraph.startswith("Attributes:") else {}
    return found


def attributes(paragraph: str) -> dict[str, str]:
    """`name: meaning` entries of the Attributes section of a docstring."""
    found: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(paragraph.removeprefix("Attributes:").strip("\n")).splitlines():
        if line and not line.startswith(" "):
            name, _, meaning = line.partition(": ")
            found |= dict.fromkeys(name.split(", "), meaning)
        elif name:
            found |= {one: f"{found[one]} {line.strip()}" for one in name.split(", ")}
    return found


def default(field: dataclasses.Field) -> str:
    """As Python writes it; empty where there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "" if field.default is dataclasses.MISSING else repr(field.default)


def needs(policy: Policy) -> str:
    """What it looks at, in words."""
    reads = getattr(policy, "reads", "")
    if isinstance(reads, frozenset):  # inside a vision transformer
        what = {"keys": "keys of its blocks", "class_attention": "attention of the class token in its blocks"}
        reads = ", ".join(what[one] for one in sorted(reads))
    return reads or ", ".join(sorted(map(_need, policy.needs))) or "nothing"


def _need(need: Need) -> str:
    if isinstance(need, str):
        return need
    attention = {"cls": "of the class token", "all": "received", "auto": "of the class token or received"}
    what = {"keys": "keys", "class_token": "class token", "attention": f"attention {attention[need.queries]}"}
    layer = f"{need.layer:.1%} deep" if isinstance(need.layer, float) else need.layer
    return f"{what[need.what]} (vision layer {'that is read' if layer is None else layer})"

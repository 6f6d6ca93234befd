"""Policies as text, `cdpruner(keep=64)` or `tome(r=8)+cdpruner(keep=0.25)`, and the Python line that does the same."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from ..command import SCHEDULES, make_policy
from ..errors import InvalidArgumentError
from ..policies import Policy

BUDGETS = SCHEDULES | {"keep"}
LONGEST = 100  # letters of a folder's name


def policies(text: str, *, keep: float | None = None, per: str | None = None) -> list[Policy]:
    """The policies that the text names, in its order; none of them for "none".

    Args:
        text: a name of `tokenprune list`, with fields in parentheses; several joined by "+".
        keep: budget of the one that states none itself.
        per: unit of its budget.

    Raises:
        InvalidArgumentError: the text cannot be read; a field or value is wrong; several policies, or none, are left
            without a budget for `keep` to be.
        UnknownPolicyError: a name is wrong.
    """
    parts = [_part(one) for one in _split(text)]
    open_ = [given for name, given in parts if name != "none" and not BUDGETS & set(given)]
    if keep is not None and len(open_) != 1 and any(name != "none" for name, _ in parts):
        which = "each states its own budget" if not open_ else f"{len(open_)} policies state no budget"
        raise InvalidArgumentError(
            f"keep={keep} cannot be given to {text!r}, where {which}: write budgets in parentheses, name(keep=...)."
        )
    for given in open_ if keep is not None else []:
        given |= {"keep": keep} | ({"per": per} if per else {})
    made = [make_policy(name, given) for name, given in parts]
    return made if len(made) > 1 or made[0].name != "none" else []


def expanded(texts: Sequence[str], keeps: Sequence[float], per: str | None = None) -> list[list[Policy]]:
    """Each of the policies with each of the budgets, once where it states its own.

    Raises:
        InvalidArgumentError, UnknownPolicyError: as `policies`.
    """
    found: list[list[Policy]] = []
    for one in texts:
        found += [policies(one)] if budgeted(one) else [policies(one, keep=keep, per=per) for keep in keeps]
    return found


def budgeted(text: str) -> bool:
    """Whether each policy of the text states its budget, or is "none"."""
    return all(name == "none" or BUDGETS & set(given) for name, given in map(_part, _split(text)))


def line(made: Sequence[Policy], model: str = "model") -> str:
    """`tokenprune.wrap(model, CDPruner(keep=64))`: what does the same in Python."""
    texts = [python(one) for one in made]
    return f"tokenprune.wrap({model}, {texts[0] if len(texts) == 1 else '[' + ', '.join(texts) + ']'})"


def python(policy: Policy) -> str:
    """`CDPruner(keep=64)`: fields that differ from their defaults."""
    return f"{type(policy).__name__}({_given(policy)})"


def text(made: Sequence[Policy]) -> str:
    """What `policies` reads back; "none" of none."""
    named = [f"{one.name}({given})" if (given := _given(one)) else one.name for one in made]
    return "+".join(named) or "none"


def _given(policy: Policy) -> str:
    changed = []
    for field in fields(policy):
        value = getattr(policy, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.init and value != default:
            changed.append(f"{field.name}={value!r}")
    return ", ".join(changed)


def _split(text: str) -> list[str]:
    """At every "+" outside parentheses."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _part(text: str) -> tuple[str, dict[str, Any]]:
    match = re.fullmatch(r"([\w.-]+)\s*(?:\((.*)\))?", text, re.DOTALL)
    if match is None:
        raise InvalidArgumentError(f"policy={text!r} cannot be read: write name or name(field=value, ...).")
    name, inner = match[1], match[2] or ""
    try:
        call = ast.parse(f"f({inner})", mode="eval").body
        if call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        return name, {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise InvalidArgumentError(
            f"policy={text!r} cannot be read: fields are name=value, values plain, such as keep=64 or per='prompt'."
        ) from None


def slug(given: str) -> str:
    """Name of a folder for the policies of a text."""
    name = re.sub(r"[^\w.=+-]+", "_", given).strip("_")
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{hashlib.sha256(given.encode()).hexdigest()[:8]}"


def label(made: Sequence[Policy]) -> str:
    """Budgets as text, "0.25" or "8 + 0.25"; "" of none."""
    values = [
        next((v for n in ("keep", *sorted(SCHEDULES)) if (v := getattr(one, n, None)) is not None), "") for one in made
    ]
    return " + ".join(map(str, values))

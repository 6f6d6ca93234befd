"""What is searched: policies with budgets, and compositions of stages, as texts of `specs`."""

from __future__ import annotations

from collections.abc import Sequence

from ...command import number
from ...errors import InvalidArgumentError
from ...policies import Policy
from .. import specs

BASELINES = ("random", "uniform")  # look at nothing
POLICIES = ("cdpruner", "divprune", "visionzip", "vispruner", "dart", "hiprune", *BASELINES)
KEEPS = ("0.5", "0.35", "0.25", "0.18", "0.11", "0.05")
MERGED = 8  # patches that each block of the tower merges in a composition
INSIDE = 0.5  # share of the tokens entering the language model that its third layer still reads in one


def candidates(texts: Sequence[str], keeps: Sequence[str], *, compose: bool = False) -> list[str]:
    """Configurations as `specs.text` writes them, none twice, in the order of the policies, each with its budgets.

    Args:
        texts: of policies. One that states no budget is tried with each of `keeps`.
        keeps: "0.25" (share) or "64" (tokens).
        compose: also each of these without a budget behind `tome`, and in front of `fastv`, which is given its own
            share of all tokens. Baselines are left as they are.

    Raises:
        InvalidArgumentError: a text or budget cannot be used, or a text is that of the dense model.
        UnknownPolicyError: a name is wrong.
    """
    found = []
    for text in texts:
        made = specs.policies(text)
        if not made:
            raise InvalidArgumentError(f"policy={text!r} is the dense model, with which all are compared: drop it.")
        if all(map(_budgeted, made)):
            found.append(specs.text(made))
            continue
        found += [specs.text(specs.policies(text, keep=number(keep))) for keep in keeps]
        if compose and len(made) == 1 and made[0].stage == "projector" and made[0].name not in BASELINES:
            found += [_text(f"tome(r={MERGED})+{text}", keep) for keep in keeps]
            found += [_text(f"{text}+fastv(keep={_inside(number(keep))})", keep) for keep in keeps]
    return list(dict.fromkeys(found))


def _text(text: str, keep: str) -> str:
    return specs.text(specs.policies(text, keep=number(keep)))


def _inside(keep: int | float) -> int | float:
    return max(1, int(keep * INSIDE)) if isinstance(keep, int) else round(keep * INSIDE, 4)


def _budgeted(policy: Policy) -> bool:
    return policy.keep is not None or getattr(policy, "budgeted", False)


def is_baseline(text: str) -> bool:
    """Whether a candidate looks at nothing."""
    return all(policy.name in BASELINES for policy in specs.policies(text))

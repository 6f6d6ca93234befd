"""What a search found, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import specs
from .candidates import is_baseline
from .search import CHECKS, Loss, Outcome, Plan, Row

if TYPE_CHECKING:
    from rich.table import Table

ORDINALS = ("first", "second", "third")


def table(outcome: Outcome) -> Table:
    """Candidates from the fastest on; a star before those of the Pareto front."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False)
    for name in ("", "policy", "time", "loss [95 %]", "documents", "decision"):
        made.add_column(name, overflow="fold", no_wrap=name in ("time", "loss [95 %]"))
    front = {row.text for row in outcome.front}
    for row in outcome.rows:
        star = "*" if row.text in front else ""
        cells = row.text, f"{row.time:.3f}", *_measured(row.loss), row.decision
        made.add_row(star, *(Text(cell) for cell in cells))
    return made


def _measured(loss: Loss | None) -> tuple[str, str]:
    return ("", "") if loss is None else (_interval(loss), str(loss.count))


def _interval(loss: Loss) -> str:
    return f"{loss.mean:+.4f} [{loss.low:+.4f}, {loss.high:+.4f}]"


def refusals(refused: dict[str, str]) -> list[str]:
    """A line for every reason."""
    found: dict[str, list[str]] = {}
    for text, why in refused.items():
        found.setdefault(why, []).append(text)
    return [f"refused: {', '.join(texts)}: {why}" for why, texts in found.items()]


def line(outcome: Outcome) -> str:
    """The chosen one in Python."""
    return specs.line(specs.policies(outcome.chosen.text))


def sentences(outcome: Outcome, plan: Plan) -> list[str]:
    """What the table means, and how the held-out checks went."""
    share = outcome.spent / outcome.exhaustive if outcome.exhaustive else 0
    lines = [
        "",
        "time: first token, as a multiple of the dense model's. loss: of the mean over the calibration documents that "
        "the candidate answered. *: no other is both faster and more accurate, each as far as it came.",
        f"{outcome.spent} answers, {share:.0%} of what all candidates on all documents would have taken; the dense "
        f"model scores {abs(outcome.dense):.4f}, and {abs(outcome.dense_heldout):.4f} on the held-out documents.",
    ]
    return lines + [_check(row, place, plan) for place, row in enumerate(outcome.checks)] + _remarks(outcome, plan)


def _check(row: Row, place: int, plan: Plan) -> str:
    loss = row.heldout
    bound = ""
    if plan.confidence is not None:
        bound = f", upper bound {loss.bound:+.4f} at {1 - (1 - plan.confidence) / CHECKS:.2%}"
    failed = "" if loss.within else (" It fails." if loss.mean > loss.allowed else " It is not shown to be within.")
    return (
        f"held-out check, {ORDINALS[place]} of at most {CHECKS}: {row.text} loses {_interval(loss)} on {loss.count} "
        f"documents{bound}; allowed is {loss.allowed:.4f} ({plan.drop}).{failed}"
    )


def _remarks(outcome: Outcome, plan: Plan) -> list[str]:
    if (row := outcome.chosen) is None:
        return []
    found = []
    if plan.confidence is None and row.heldout.high > row.heldout.allowed:
        found.append(
            "The interval reaches beyond what is allowed: the estimate is within, the loss itself may not be. More "
            "documents (--heldout) narrow it; --confidence 0.95 asks for proof."
        )
    if len(outcome.checks) > 1:
        covered = "" if plan.confidence is None else ", which its bound allows for"
        found.append(
            f"It is the {ORDINALS[len(outcome.checks) - 1]} that was checked: each further one makes it likelier that "
            f"one passes by luck{covered}."
        )
    if is_baseline(row.text):
        found.append("It is a baseline, which looks at nothing: no policy tried was faster within the allowed loss.")
    return [*found, f"{row.text}: {1 / row.time:.2f} times as fast to the first token as the dense model."]


def obstacle(outcome: Outcome, plan: Plan) -> str:
    """Why there is nothing to paste, in one sentence."""
    if all(row.loss is None for row in outcome.rows):
        return "no candidate is faster than the dense model on this machine: leave the model as it is."
    near = outcome.closest
    lost = f"the closest is {near.text}, which loses {near.loss.mean:.4f} on {near.loss.count} documents"
    allowed = f"{near.loss.allowed:.4f} ({plan.drop})"
    if outcome.checks:
        return (
            f"{len(outcome.checks)} within the allowed loss of {allowed} on the calibration documents, none on the "
            f"held-out ones: raise --max-drop, or --samples for a surer choice; {lost}."
        )
    return f"no candidate is within the allowed loss of {allowed}: raise --max-drop or give larger --keep; {lost}."

"""Asking layer policies: budgets become counts, units of equal size one batched call, answers are applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import UnsupportedPolicyError
from ..layers import Event, LayerTokens
from ..ops import sent
from ..policies.layer import LayerPolicy
from .layer_call import LayerCall, Planned
from .select import check
from .units import UnitState, grouped


def counts(policy: LayerPolicy, event: Event, units: list[UnitState], left: list[int]) -> list[int]:
    """Tokens that an event leaves of every unit, of which `left` are there; its shares are of units as they came."""
    asked = [len(unit.source) for unit in units]
    for group in grouped(units, policy):
        sizes = [asked[i] for i in group]
        most = policy.count(event, sum(sizes))
        if policy.of is None or most == 0:
            shares = [most] * len(group)
        else:
            shares = Budget(most, policy.per, policy.rounding, policy.of, policy.quota).split(sizes)
        for i, k in zip(group, shares, strict=True):
            asked[i] = k
    return [min(k, n) for k, n in zip(asked, left, strict=True)]


def choose(
    call: LayerCall, one: Planned, hidden: Tensor, scores: Tensor | None, *, depth: int
) -> tuple[Tensor, list[int]]:
    """Ask a policy about one event. Changes the units in place.

    Args:
        hidden: [B, L, ...], hidden states of the current sequence.
        scores: [B, L] float32, or None where the event looks at no attention.
        depth: layers of the decoder.

    Returns:
        hidden states with merged rows in place, and how many tokens of every unit are left.

    Raises:
        PolicyError: an answer that is no selection.
    """
    policy, drop, groups = one.policy, one.event.drop, {}
    asked = counts(policy, one.event, call.units, [len(unit.slots) for unit in call.units])
    for i, (unit, k) in enumerate(zip(call.units, asked, strict=True)):
        if k == 0:
            unit.drop()
        elif k < len(unit.slots) or (policy.everywhere and unit.modalities & policy.kinds):
            alone = None if policy.exact else i
            key: Any = (len(unit.slots), k, len(unit.source), unit.full_grid, alone)
            groups.setdefault(key, []).append((unit, call.history.entered(i, drop)))
    for (_, k, *_), group in groups.items():
        units, entered = map(list, zip(*group, strict=True))
        about = {"entered": entered, "depth": depth}
        hidden = _apply(call, one, units, k, hidden, scores, about)
    return hidden, [len(unit.slots) for unit in call.units]


def _apply(
    call: LayerCall,
    one: Planned,
    group: list[UnitState],
    k: int,
    hidden: Tensor,
    scores: Tensor | None,
    about: dict[str, Any],
) -> Tensor:
    sample = sent([unit.sample for unit in group], hidden.device)[:, None]
    slots = torch.stack([unit.slots for unit in group]).to(hidden.device)
    tokens = LayerTokens(
        hidden=hidden[sample, slots].flatten(2),
        scores=None if scores is None else scores[sample, slots],
        place=torch.stack([unit.place for unit in group]).to(hidden.device),
        total=len(group[0].source),
        grid=group[0].full_grid,
        image_sizes=[call.size_of(unit) for unit in group],
        compact=one.compact,
        keys=[unit.key for unit in group],
        event=one.event,
        **about,
    )
    selection = one.policy.select(tokens, k)
    indices = check(one.policy, selection, tokens.hidden, k if one.policy.exact else None, call.outer.checks)
    source = selection.source_map(slots.shape[1])
    if selection.features is not None:
        if hidden.ndim != 3:
            raise UnsupportedPolicyError(
                f"policy {one.policy.name!r} merges hidden states, and this decoder keeps several streams of them: "
                "use a policy that only drops."
            )
        if call.deepstack is not None:
            call.deepstack.merge(sample, call.origin(sample, slots), selection)
        hidden = hidden.index_put((sample, slots.gather(1, indices)), selection.features.to(hidden.dtype))
    for i, unit in enumerate(group):
        unit.narrow(indices[i], source[i], merged=selection.features is not None)
    return hidden

"""Asking policies: budgets become counts, units of equal size one batched call, answers are checked and applied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidFeaturesError, PolicyError, UnsupportedPolicyError
from ..policies import ProjectorPolicy
from ..tokens import Selection, Tap, VisualTokens
from .deepstack import DeepStack
from .projection import Projector
from .prompt import Prompt
from .units import UnitState


def counts(policy: ProjectorPolicy, units: list[UnitState]) -> list[int]:
    """Tokens that the policy's budget leaves of every unit."""
    budget = policy.budget
    if budget.of is None:
        return [budget.count(len(unit.slots)) for unit in units]
    groups: dict[Any, list[int]] = {}
    for i, unit in enumerate(units):
        groups.setdefault(unit.sample if budget.of == "prompt" else (unit.sample, unit.image), []).append(i)
    result = [0] * len(units)
    for group in groups.values():
        for i, k in zip(group, budget.split([len(units[i].slots) for i in group]), strict=True):
            result[i] = k
    return result


def budgets_remove(policies: list[ProjectorPolicy], units: list[UnitState]) -> bool:
    """Whether the budgets ask to remove anything from these units."""
    sizes = [len(unit.slots) for unit in units]
    return any(counts(policy, units) != sizes for policy in policies)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What belongs to a forward besides its units.

    Attributes:
        prompt: the text.
        projector: of the model.
        deepstack: further rows per visual token, merged wherever tokens are; None where the model has none.
    """

    prompt: Prompt
    projector: Projector
    deepstack: DeepStack | None = None


def apply_policies(policies: list[ProjectorPolicy], units: list[UnitState], x: Tensor, around: Surroundings) -> Tensor:
    """Run the policies one after the other; each sees what the last one left. Changes `units` in place.

    Args:
        x: [B, L, D], the decoder's input.
        around: the rest of the forward.

    Returns:
        x, or a copy of it with merged rows in place.

    Raises:
        InvalidFeaturesError: NaN or Inf among the visual features.
        PolicyError: an answer that is no selection.
    """
    for number, policy in enumerate(policies):
        groups: dict[Any, list[UnitState]] = {}
        for unit, k in zip(units, counts(policy, units), strict=True):
            groups.setdefault((len(unit.slots), k, unit.grid), []).append(unit)
        for (n, k, _), group in groups.items():
            if k == 0:
                _drop(group)
            elif k < n:
                for together in [group] if policy.exact else [[unit] for unit in group]:
                    x = _apply(policy, together, k, x, around, check=number == 0)
    return x


def _drop(group: list[UnitState]) -> None:
    for unit in group:
        unit.slots, unit.place, unit.grid = unit.slots[:0], unit.place[:0], None
        unit.source = torch.full_like(unit.source, -1)


def _apply(
    policy: ProjectorPolicy, group: list[UnitState], k: int, x: Tensor, around: Surroundings, *, check: bool
) -> Tensor:
    """One batched call of a policy on units of equal size."""
    slots, deepstack = torch.stack([unit.slots for unit in group]), around.deepstack
    sample = torch.tensor([unit.sample for unit in group], device=x.device)[:, None]
    features = x[sample, slots]
    if deepstack is not None and deepstack.only:
        features = deepstack.first(sample, slots)
    if check and not bool(torch.isfinite(features).all()):
        raise InvalidFeaturesError(
            "inputs_embeds holds NaN or Inf at visual positions: check pixel_values and the vision tower's dtype "
            "(fp16 towers overflow; bf16 or fp32 do not)."
        )
    tokens = _tokens(policy, group, features, around)
    with torch.autocast(x.device.type, enabled=False):  # selection is in float32 whatever the model runs in
        selection = policy.select(tokens, k)
    _check(policy, selection, slots.shape, k if policy.exact else None)
    if selection.features is not None:
        if deepstack is None or not deepstack.only:
            x = x.clone()
            x[sample, slots.gather(1, selection.indices)] = selection.features.to(x.dtype)
        if deepstack is not None:
            deepstack.merge(sample, slots, selection)
    source = selection.source_map(slots.shape[1])
    for i, unit in enumerate(group):
        kept = selection.indices[i]
        unit.slots, unit.place, unit.grid = unit.slots[kept], unit.place[kept], None
        unit.source = torch.where(unit.source >= 0, source[i][unit.source.clamp_min(0)], -1)
        unit.inside = {need: values[kept.to(values.device)] for need, values in unit.inside.items()}
    return x


def _tokens(policy: ProjectorPolicy, group: list[UnitState], features: Tensor, around: Surroundings) -> VisualTokens:
    prompt = around.prompt
    tokens = VisualTokens(
        features=features,
        grid=group[0].grid,
        image=torch.tensor([unit.image for unit in group], device=features.device),
        keys=[unit.key for unit in group],
    )
    inside = [need for need in policy.needs if need == "encoder" or isinstance(need, Tap)]
    if inside:
        if any(need not in unit.inside for unit in group for need in inside):
            raise UnsupportedPolicyError(
                f"policy {policy.name!r} needs the tower's features, but mm_encoder_outputs were encoded elsewhere or "
                "before the model was wrapped, or this model mixed them into others: pass pixel_values, or use "
                "a policy that reads projected features."
            )
        found = {need: torch.stack([unit.inside[need] for unit in group]).to(features.device) for need in inside}
        tokens = replace(tokens, encoder=found.pop("encoder", None), tower=found)
    if "projection" in policy.needs:
        patches, width = group[0].inside["encoder"].shape[1:]
        tokens = replace(tokens, projection=around.projector.of(patches, width))
    if "text" in policy.needs:
        rows = [prompt.embeds[unit.sample] for unit in group]
        text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])[:, None]
        mask = (torch.arange(text.shape[1]) < lengths).to(text.device)
        tokens = replace(tokens, text=text, text_mask=mask)
    if "instruction" in policy.needs:
        tokens = replace(tokens, instruction=[prompt.strings[unit.sample] for unit in group])
    return tokens


def _check(policy: ProjectorPolicy, selection: Any, shape: tuple[int, int], k: int | None) -> None:
    """k: None where the policy may answer another number of tokens."""
    (g, n), name = shape, policy.name or type(policy).__name__
    indices = getattr(selection, "indices", None)
    if not isinstance(selection, Selection) or not isinstance(indices, Tensor) or indices.dtype != torch.long:
        raise PolicyError(
            f"policy {name!r} answered a {type(selection).__name__} with {type(indices).__name__} indices: select() "
            "must return a Selection with long indices."
        )
    k = indices.shape[-1] if k is None and indices.ndim == 2 and indices.shape[-1] > 0 else k
    if indices.shape != (g, k):
        raise PolicyError(
            f"policy {name!r} answered indices of shape {tuple(indices.shape)} where k={k} of N={n} tokens in {g} "
            f"units were asked: return [{g}, {k}]."
        )
    rising = (indices[:, 1:] > indices[:, :-1]).all() & (indices[:, 0] >= 0).all() & (indices[:, -1] < n).all()
    if not bool(rising):
        raise PolicyError(
            f"policy {name!r} answered indices that are not distinct, ascending and inside 0..{n - 1}: sort them and "
            "drop repeats."
        )

"""Asking policies: budgets become counts, units of equal size one batched call, answers are checked and applied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidFeaturesError, PolicyError, UnsupportedPolicyError
from ..policies import ProjectorPolicy
from ..tokens import Selection, VisualTokens
from .prompt import Prompt
from .units import UnitState


def budgets_remove(policies: list[ProjectorPolicy], units: list[UnitState]) -> bool:
    """Whether the budgets ask to remove anything from these units."""
    return any(policy.budget.count(len(unit.slots)) < len(unit.slots) for policy in policies for unit in units)


def apply_policies(policies: list[ProjectorPolicy], units: list[UnitState], x: Tensor, prompt: Prompt) -> Tensor:
    """Run the policies one after the other; each sees what the last one left. Changes `units` in place.

    Args:
        x: [B, L, D], the decoder's input.

    Returns:
        x, or a copy of it with merged rows in place.

    Raises:
        InvalidFeaturesError: NaN or Inf among the visual features.
        PolicyError: an answer that is no selection.
    """
    features = x[_samples(units, x.device), torch.cat([unit.slots for unit in units])]
    if not bool(torch.isfinite(features).all()):
        raise InvalidFeaturesError(
            "inputs_embeds holds NaN or Inf at visual positions: check pixel_values and the vision tower's dtype "
            "(fp16 towers overflow; bf16 or fp32 do not)."
        )
    for policy in policies:
        groups: dict[Any, list[UnitState]] = {}
        for unit in units:
            groups.setdefault((len(unit.slots), unit.grid), []).append(unit)
        for (n, _), group in groups.items():
            k = policy.budget.count(n)
            if k < n:
                x = _apply(policy, group, k, x, prompt)
    return x


def _samples(units: list[UnitState], device: torch.device) -> Tensor:
    counts = torch.tensor([len(unit.slots) for unit in units])
    return torch.tensor([unit.sample for unit in units]).repeat_interleave(counts).to(device)


def _apply(policy: ProjectorPolicy, group: list[UnitState], k: int, x: Tensor, prompt: Prompt) -> Tensor:
    """One batched call of a policy on units of equal size."""
    slots = torch.stack([unit.slots for unit in group])
    sample = torch.tensor([unit.sample for unit in group], device=x.device)[:, None]
    tokens = _tokens(policy, group, x[sample, slots], prompt)
    selection = policy.select(tokens, k)
    _check(policy, selection, slots.shape, k)
    if selection.features is not None:
        x = x.clone()
        x[sample, slots.gather(1, selection.indices)] = selection.features.to(x.dtype)
    source = selection.source_map(slots.shape[1])
    for i, unit in enumerate(group):
        kept = selection.indices[i]
        unit.slots, unit.place, unit.grid = unit.slots[kept], unit.place[kept], None
        unit.source = torch.where(unit.source >= 0, source[i][unit.source.clamp_min(0)], -1)
        if unit.encoder is not None:
            unit.encoder = unit.encoder[kept]
    return x


def _tokens(policy: ProjectorPolicy, group: list[UnitState], features: Tensor, prompt: Prompt) -> VisualTokens:
    tokens = VisualTokens(
        features=features,
        grid=group[0].grid,
        image=torch.tensor([unit.image for unit in group], device=features.device),
        keys=[unit.key for unit in group],
    )
    if "encoder" in policy.needs:
        if any(unit.encoder is None for unit in group):
            raise UnsupportedPolicyError(
                f"policy {policy.name!r} needs the tower's features, but mm_encoder_outputs were encoded elsewhere or "
                "before the model was wrapped: pass pixel_values instead."
            )
        tokens = replace(tokens, encoder=torch.stack([unit.encoder for unit in group]).to(features.device))
    if "text" in policy.needs:
        rows = [prompt.embeds[unit.sample] for unit in group]
        text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])[:, None]
        mask = (torch.arange(text.shape[1]) < lengths).to(text.device)
        tokens = replace(tokens, text=text, text_mask=mask)
    if "instruction" in policy.needs:
        tokens = replace(tokens, instruction=[prompt.strings[unit.sample] for unit in group])
    return tokens


def _check(policy: ProjectorPolicy, selection: Any, shape: tuple[int, int], k: int) -> None:
    (g, n), name = shape, policy.name or type(policy).__name__
    indices = getattr(selection, "indices", None)
    if not isinstance(selection, Selection) or not isinstance(indices, Tensor) or indices.dtype != torch.long:
        raise PolicyError(
            f"policy {name!r} answered a {type(selection).__name__} with {type(indices).__name__} indices: select() "
            "must return a Selection with long indices."
        )
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

"""Asking policies: budgets become counts, units of equal size one batched call, answers are checked and applied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidFeaturesError, PolicyError, UnsupportedPolicyError
from ..ops import image_extremes, sent
from ..policies import Policy, ProjectorPolicy
from ..tokens import Selection, Tap, VisualTokens, looks_inside
from .checks import Checks, finite
from .deepstack import DeepStack
from .projection import Projector
from .prompt import Prompt
from .units import UnitState, grouped

NOT_FINITE = (
    "inputs_embeds holds NaN or Inf at visual positions: check pixel_values and the vision tower's dtype (fp16 towers "
    "overflow; bf16 or fp32 do not)."
)


def counts(policy: ProjectorPolicy, units: list[UnitState]) -> list[int]:
    """Tokens that the policy's budget leaves of every unit; all of those of modalities that it leaves alone."""
    budget, result = policy.budget, [len(unit.slots) for unit in units]
    for group in grouped(units, policy):
        sizes = [result[i] for i in group]
        shares = [budget.count(sizes[0])] if budget.of is None else budget.split(sizes)
        for i, k in zip(group, shares, strict=True):
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
        checks: for what only the device knows.
        deepstack: further rows per visual token, merged wherever tokens are; None where the model has none.
    """

    prompt: Prompt
    projector: Projector
    checks: Checks
    deepstack: DeepStack | None = None


def apply_policies(policies: list[ProjectorPolicy], units: list[UnitState], x: Tensor, around: Surroundings) -> Tensor:
    """Run the policies one after the other; each sees what the last one left. Changes `units` in place.

    Selection is in float32 whatever the model runs in, so autocast has no part in it.

    Args:
        x: [B, L, D], the decoder's input.
        around: the rest of the forward.

    Returns:
        x, or a copy of it with merged rows in place.

    Raises:
        InvalidFeaturesError: NaN or Inf among the visual features.
        PolicyError: an answer that is no selection.
    """
    for policy in policies:
        groups: dict[Any, list[UnitState]] = {}
        for i, (unit, k) in enumerate(zip(units, counts(policy, units), strict=True)):
            if k == 0:
                unit.drop()
            elif k < len(unit.slots):
                groups.setdefault((len(unit.slots), k, unit.grid, None if policy.exact else i), []).append(unit)
        shown = [_tokens(policy, group, x, around) for group in groups.values()]
        for (_, k, *_), group, tokens in zip(groups, groups.values(), _rated(policy, shown), strict=True):
            x = _apply(policy, group, tokens, k, x, around)
    return x


def _rated(policy: ProjectorPolicy, shown: list[VisualTokens]) -> list[VisualTokens]:
    """With the policy's own ratings of them, and the extremes of these over each image."""
    ratings = [rating for tokens in shown if (rating := policy.rate(tokens)) is not None]
    if not ratings:
        return shown
    extremes = image_extremes(ratings, [tokens.image for tokens in shown])
    parts = zip(shown, ratings, extremes, strict=True)
    return [replace(tokens, rating=rating.float(), extremes=both) for tokens, rating, both in parts]


def _apply(
    policy: ProjectorPolicy, group: list[UnitState], tokens: VisualTokens, k: int, x: Tensor, around: Surroundings
) -> Tensor:
    """One batched call of a policy on units of equal size."""
    selection = policy.select(tokens, k)
    indices = check(policy, selection, tokens.features, k if policy.exact else None, around.checks)
    sample, slots, deepstack = *_places(group, x), around.deepstack
    merged = selection.features is not None
    if merged:
        if deepstack is None or not deepstack.only:
            x = x.clone()
            x[sample, slots.gather(1, indices)] = selection.features.to(x.dtype)
        if deepstack is not None:
            deepstack.merge(sample, slots, selection)
    source = selection.source_map(slots.shape[1])
    for i, unit in enumerate(group):
        unit.narrow(indices[i], source[i], merged=merged)
    return x


def _places(group: list[UnitState], x: Tensor) -> tuple[Tensor, Tensor]:
    """[G, 1] samples and [G, N] positions of units of equal size."""
    sample = sent([unit.sample for unit in group], x.device)[:, None]
    return sample, torch.stack([unit.slots for unit in group])


def _features(group: list[UnitState], x: Tensor, sample: Tensor, slots: Tensor) -> Tensor:
    """[G, N, D]; a view where all tokens of one unit are there and lie side by side."""
    unit, last = group[0], len(slots[0]) - 1
    if len(group) > 1 or unit.slots is not unit.full_slots or int(unit.places[-1] - unit.places[0]) != last:
        return x[sample, slots]
    first = int(unit.places[0])
    return x[unit.sample, first : first + last + 1][None]


def _tokens(policy: ProjectorPolicy, group: list[UnitState], x: Tensor, around: Surroundings) -> VisualTokens:
    """What the policy needs of units of equal size."""
    prompt, (sample, slots) = around.prompt, _places(group, x)
    if around.deepstack is not None and around.deepstack.only:
        features = around.deepstack.first(sample, slots)
    else:
        features = _features(group, x, sample, slots)
    whole = any(unit.slots is unit.full_slots for unit in group)  # else a policy before looked at them
    if whole:
        around.checks.require(finite(features).all(), InvalidFeaturesError(NOT_FINITE))
    tokens = VisualTokens(
        features=features,
        grid=group[0].grid,
        image=sent([unit.image for unit in group], features.device),
        keys=[unit.key for unit in group],
    )
    if looks_inside(policy.needs):
        tokens = replace(tokens, **_inside(policy, group, around, features.device))
    if "text" in policy.needs:
        rows = [prompt.embeds[unit.sample] for unit in group]
        text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])[:, None]
        mask = sent(torch.arange(text.shape[1]) < lengths, text.device)
        tokens = replace(tokens, text=text, text_mask=mask)
    if "instruction" in policy.needs:
        tokens = replace(tokens, instruction=[prompt.strings[unit.sample] for unit in group])
    return tokens


def _inside(
    policy: ProjectorPolicy, group: list[UnitState], around: Surroundings, device: torch.device
) -> dict[str, Any]:
    """Tower features of the patches, taps, and the projector."""
    needs = [need for need in policy.needs if isinstance(need, Tap)]
    needs += ["encoder"] if policy.needs & {"encoder", "projection"} else []
    if any(unit.merged for unit in group):
        raise UnsupportedPolicyError(
            f"policy {policy.name!r} needs the tower's features, and a policy before it merged tokens, which are no "
            "longer made of their own patches: put it first."
        )
    if any(need not in unit.inside for unit in group for need in needs):
        raise UnsupportedPolicyError(
            f"policy {policy.name!r} needs the tower's features, but mm_encoder_outputs were encoded elsewhere, before "
            "the model was wrapped or while it was disabled, or this model mixed them into others: pass pixel_values, "
            "or use a policy that reads projected features."
        )
    found = {need: torch.stack([unit.inside[need] for unit in group]).to(device) for need in needs}
    shown = {"encoder": found.pop("encoder", None), "tower": found}
    if "projection" in policy.needs:
        shown["projection"] = around.projector.of(*shown["encoder"].shape[2:])
    return shown


def check(policy: Policy, selection: Any, rows: Tensor, k: int | None, checks: Checks) -> Tensor:
    """What a policy answered about units with rows [G, N, D]: its indices, none of them out of bounds.

    Args:
        k: None where the policy may answer another number of tokens.
        checks: for what only the device knows.

    Raises:
        PolicyError: it is no selection.
    """
    (g, n, width), name = rows.shape, policy.name or type(policy).__name__
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
    bounds = torch.cat([indices.new_full((g, 1), -1), indices, indices.new_full((g, 1), n)], 1)
    checks.require(
        (bounds[:, 1:] > bounds[:, :-1]).all(),
        PolicyError(
            f"policy {name!r} answered indices that are not distinct, ascending and inside 0..{n - 1}: sort them and "
            "drop repeats."
        ),
    )
    shapes = {"features": (g, k, width), "source": (g, n), "sizes": (g, k), "weights": (g, n)}
    for part, shape in shapes.items():
        value = getattr(selection, part)
        if value is not None and value.shape != shape:
            raise PolicyError(
                f"policy {name!r} answered {part} of shape {tuple(value.shape)} for k={k} of N={n} tokens in {g} "
                f"units: return {list(shape)}."
            )
    return indices.clamp(0, n - 1)  # what is out of bounds must not be read before the device has said so

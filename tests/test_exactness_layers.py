"""Contracts 1 and 2 inside the language model, over all families: keep-all is the identity, dropped is what it says."""

from collections import defaultdict
from dataclasses import dataclass, replace

import pytest
import torch

import tokenprune
from tests import reference
from tests.default_layer_policies import LAYER_POLICIES
from tests.families import BY_NAME, FAMILIES, LLAVA, QWEN2_5_VL, REFUSED_INSIDE, VIDEOS
from tests.probes import generate, logits, new_tokens, protected
from tokenprune import DivPrune, Event, FastV, LayerPolicy, Pool, RandomLayers, Selection, UnsupportedModelError
from tokenprune.stages import within

# (images of each sample, layers in front of which tokens leave): every batch and every set of layers, on every family
DROPS = [((1,), (0, 2)), ((2, 1), (2,)), ((1, 0, 3), (1, 3))]
WITH = ("qwen3_vl", "gemma3", "smolvlm", "granite_docling")
SEVERAL = [LLAVA, QWEN2_5_VL, *(BY_NAME[name] for name in WITH if name in BY_NAME)]
# Compact where the model has 1-D positions
NUMBERED = ("sparsevlm", "sparsevlm-subset", "pyramiddrop", "adaptinfer", "adaptinfer-half")


@dataclass(kw_only=True)
class Steps(LayerPolicy):
    """Keeps every other token of those left in front of some layers, whatever they hold."""

    drops: tuple = (1, 3)
    budgeted = True

    def events(self, depth):
        return tuple(Event(drop=drop, number=i) for i, drop in enumerate(self.drops))

    def count(self, event, total):
        return max(1, total // 2 ** (event.number + 1))

    def select(self, tokens, k):
        return Selection.subset(torch.arange(1, 2 * k, 2).clamp_max(tokens.shape[1] - 1).expand(tokens.shape[0], k))


def dropped_by_hand(family, model, images, drops):
    """Layer -> [B, L] bool, by the rule of `Steps`."""
    apart = protected(family, model, images)
    left = [[slot for slot in places if not apart[slot]] for places in family.places(images)]
    totals, masks = [len(slots) for slots in left], {}
    for number, drop in enumerate(drops):
        keep = ~reference.visual(family.inputs(images)) | apart
        for i, total in enumerate(totals):
            k = max(1, total // 2 ** (number + 1))
            if k < len(left[i]):
                left[i] = [left[i][min(2 * j + 1, len(left[i]) - 1)] for j in range(k)]
            for slot in left[i]:
                keep[slot] = True
        masks[drop] = keep
    return masks


family_and_attention = pytest.mark.parametrize(
    ("family", "attention"),
    [pytest.param(one, kind, id=f"{one.name}-{kind}") for one in FAMILIES for kind in one.attentions],
)


def refused(family):
    return REFUSED_INSIDE.get(family.model_type)


@pytest.mark.parametrize(
    ("family", "attention", "images", "drops"),
    [
        pytest.param(one, kind, images, drops, id=f"{one.name}-{kind}-{images}-{drops}")
        for one in FAMILIES
        for i, kind in enumerate(one.attentions)
        for images, drops in DROPS[i::2]  # each once, every attention at least once
    ],
)
def test_given_indices(family, attention, images, drops, record_property):
    model, inputs = family.model(attention=attention), family.inputs(images)
    if (reason := refused(family)) is not None:
        with pytest.raises(UnsupportedModelError, match=reason), tokenprune.wrap(model, Steps(drops=drops)):
            model(**inputs)
        return
    with tokenprune.wrap(model, Steps(drops=drops)):
        pruned = generate(model, inputs)
    inside = dropped_by_hand(family, model, images, drops)
    everything = torch.ones_like(inside[drops[0]])
    expected = reference.logits(model, inputs, everything, new_tokens(pruned, inputs), inside=inside)
    dense = reference.logits(model, inputs, everything, new_tokens(pruned, inputs))
    difference = float((logits(pruned) - expected).abs().max())
    record_property("difference", difference)
    assert difference < family.tolerance
    assert (dense - expected).abs().max() > 1e-2  # the test can fail


@pytest.mark.parametrize("family", [family for family in FAMILIES if not refused(family)], ids=lambda one: one.name)
def test_keep_all_is_bit_identical(family):
    model, inputs = family.model(), family.inputs((2, 1))
    dense = generate(model, inputs)
    types = getattr(reference.text_decoder(model).config, "layer_types", None) or ["full_attention"] * 4
    readable = [i for i in range(3) if types[i] not in ("linear_attention", "conv", "moe", "indexed_attention")]
    policies = [RandomLayers(keep=1.0), *(FastV(layer=i + 1, keep=1.0) for i in readable[:1])]
    for policy in policies:
        with tokenprune.wrap(model, policy) as handle:
            assert torch.equal(logits(generate(model, inputs)), logits(dense)), policy
            assert handle.report().kept == handle.report().total > 0
    assert torch.equal(logits(generate(model, inputs)), logits(dense))


@pytest.fixture
def answered(monkeypatch):
    """(event, unit, answer of the policy, answered for which of them), in order."""
    seen, apply = [], within._apply

    def noted(call, one, group, *given):
        before = [unit.place for unit in group]
        policy, selections = one.policy, []

        class Noting(type(policy)):
            def select(self, tokens, k):
                selections.append(super().select(tokens, k))
                return selections[-1]

        one = replace(one, policy=_as(policy, Noting))
        out = apply(call, one, group, *given)
        seen.extend(
            (one.event.drop, unit.sample, unit.full_slots[places].tolist(), selections[0], i)
            for i, (unit, places) in enumerate(zip(group, before, strict=True))
        )
        return out

    monkeypatch.setattr(within, "_apply", noted)
    return seen


def _as(policy, kind):
    other = object.__new__(kind)
    other.__dict__.update(policy.__dict__)
    return other


def left_and_merged(inputs, answered):
    """layer -> [B, L] bool, what is left; layer -> (sample, position) -> shares of positions there."""
    keep, inside, merged = torch.ones_like(inputs["input_ids"]).bool(), {}, defaultdict(dict)
    for drop, sample, slots, selection, i in answered:
        inside.setdefault(drop, keep)
        inside[drop] = keep = inside[drop].clone()
        keep[sample, slots] = False
        indices = selection.indices[i].tolist()
        keep[sample, [slots[j] for j in indices]] = True
        if selection.features is not None:
            source, shares = selection.source[i].tolist(), selection.merge_weights(len(slots))[i].tolist()
            for place, j in enumerate(indices):
                members = {slots[m]: shares[m] for m, into in enumerate(source) if into == place}
                merged[drop][sample, slots[j]] = members
    return inside, merged


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, id=f"{name}-{family.name}")
        for name, factory in LAYER_POLICIES.items()
        for family in (SEVERAL if "image" in factory().kinds else VIDEOS)
    ],
)
@pytest.mark.parametrize("images", [(2, 1)], ids=str)
def test_every_policy(family, name, images, answered):
    model, inputs = family.model(), family.inputs(images)
    with tokenprune.wrap(model, LAYER_POLICIES[name](keep=0.3)) as handle:
        handle.image_sizes = [(24, 24)] * sum(images)
        pruned, report = generate(model, inputs), handle.report()
    inside, merged = left_and_merged(inputs, answered)
    assert sorted(inside) == [event.layer for event in report.events]
    assert report.kept < report.total
    compact = report.positions == "compact"
    assert compact == (
        name.startswith(NUMBERED) and "plus" not in name and family.name not in ("qwen2_5_vl", "qwen3_vl")
    )
    everything = torch.ones_like(inputs["input_ids"]).bool()
    given = {"inside": inside, "merged": merged, "renumber": compact}
    expected = reference.logits(model, inputs, everything, new_tokens(pruned, inputs), **given)
    assert (logits(pruned) - expected).abs().max() < family.tolerance


@pytest.mark.parametrize("family", SEVERAL, ids=lambda family: family.name)
@pytest.mark.parametrize("front", [DivPrune(keep=0.5), Pool(keep=0.5)], ids=lambda policy: policy.name)
@pytest.mark.parametrize("name", ["fastv", "sparsevlm"])
def test_behind_a_policy_in_front(family, front, name, answered):
    model, inputs = family.model(), family.inputs((2, 1))
    with tokenprune.wrap(model, [front, LAYER_POLICIES[name](keep=0.2)]) as handle:
        pruned, report = generate(model, inputs), handle.report()
    assert report.stage == "projector + layer"
    inside, merged = left_and_merged(inputs, answered)
    at_first = inside[min(inside)].clone()
    front_kept = protected(family, model, (2, 1)) | ~reference.visual(inputs)
    with tokenprune.wrap(model, front) as handle:
        model(**inputs)
        only = handle.report()
    front_kept = reference.keep_mask(inputs, only, front_kept & reference.visual(inputs))
    mix = reference.mixing(inputs, only) if front.name == "pool" else None
    inside = {layer: left & front_kept for layer, left in inside.items()}
    assert (inside[min(inside)] < front_kept).any()
    assert at_first.shape == front_kept.shape
    given = {"inside": inside, "merged": merged, "mix": mix, "renumber": report.positions.endswith("compact")}
    expected = reference.logits(model, inputs, front_kept, new_tokens(pruned, inputs), **given)
    assert (logits(pruned) - expected).abs().max() < family.tolerance


def test_scores_choose_the_tokens_of_the_maps():
    """FastV by hand: mean over heads of the last row of layer K - 1, from eager attention maps."""
    family = LLAVA
    model, inputs = family.model(), family.inputs((2, 1))
    with tokenprune.wrap(model, "fastv", keep=10) as handle:
        model(**inputs)
        report = handle.report()
    model.set_attn_implementation("eager")
    score = model(**inputs, output_attentions=True).attentions[1].mean(1)[:, -1]
    for unit in report.units:
        best = score[unit.sample, unit.slots].topk(10).indices.sort().values
        assert torch.equal(unit.indices, best)


def test_two_policies_at_one_layer_and_two_scores_at_once():
    """Scores read before others left are about what is still there."""
    model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
    first, second = LAYER_POLICIES["fastv"](keep=20), LAYER_POLICIES["himap"](layers=(2, 3), keeps=(12, 5))
    with tokenprune.wrap(model, [first, second]) as handle:
        out = model(**inputs).logits[:, -1]
        report = handle.report()
    assert [(event.layer, event.kept) for event in report.events] == [(2, 60), (2, 36), (3, 15)]
    scores = model_scores(inputs)
    for unit in report.units:
        assert unit.kept == 5
        best = scores[unit.sample, unit.slots].topk(20).indices
        assert set(unit.indices.tolist()) <= set(best.tolist())
    assert torch.isfinite(out).all()


def model_scores(inputs):
    model = LLAVA.model(attention="eager")
    return model(**inputs, output_attentions=True).attentions[1].mean(1)[:, -1]

"""Contracts 1 and 2: keep-all is the identity, and pruned is what it says, over all families."""

import pytest
import torch

import tokenprune
from tests import probes, reference
from tests.default_policies import POLICIES
from tests.families import BY_NAME, FAMILIES, LLAVA, PRE_ENCODES, QWEN2_5_VL, VIDEO
from tests.probes import TOLERANCE, generate, logits, merged_rows, new_tokens, protected
from tokenprune import DART, PruMerge, VisionZip

BATCHES = [(1,), (2, 1), (1, 0, 3)]
SEVERAL = [LLAVA, QWEN2_5_VL, *(BY_NAME[name] for name in ("llava_next", "internvl", "qwen2_vl"))]
ON_IMAGES = [name for name, factory in POLICIES.items() if "image" in factory().kinds]
family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
family_and_attention = pytest.mark.parametrize(
    ("family", "attention"),
    [pytest.param(one, kind, id=f"{one.name}-{kind}") for one in FAMILIES for kind in one.attentions],
)


@family_and_attention
def test_keep_all_is_bit_identical(family, attention):
    model, inputs = family.model(attention=attention), family.inputs((2, 1))
    dense, plain = generate(model, inputs), model(**inputs).logits
    for policy in ("none", "divprune"):
        with tokenprune.wrap(model, POLICIES[policy](keep=1.0)) as handle:
            assert torch.equal(logits(generate(model, inputs)), logits(dense)), policy
            assert torch.equal(model(**inputs).logits, plain), policy
            assert handle.report().kept == handle.report().total > 0
    assert torch.equal(logits(generate(model, inputs)), logits(dense))


@family
@pytest.mark.parametrize(("name", "images"), [("divprune", (2, 1)), ("pool", (1, 0, 3))], ids=str)
def test_pruned_equals_the_manual_computation(family, images, name, record_property):
    model, inputs = family.model(), family.inputs(images)
    dense = logits(generate(model, inputs))
    with tokenprune.wrap(model, POLICIES[name](keep=0.3)) as handle:
        pruned, report = generate(model, inputs), handle.report()
    assert 0 < report.kept < report.total
    keep = reference.keep_mask(inputs, report, protected(family, model, images))
    mix = reference.mixing(inputs, report) if name == "pool" else None
    expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs), mix=mix)
    difference = float((logits(pruned) - expected).abs().max())
    record_property("difference", difference)
    assert difference < family.tolerance
    assert (logits(pruned) - dense).abs().max() > 1e-2  # dense differs: the test can fail


@pytest.mark.parametrize(
    ("family", "attention", "images"),
    [
        pytest.param(one, kind, images, id=f"{one.name}-{kind}-{images}")
        for one in FAMILIES
        for i, kind in enumerate(one.attentions)
        for images in BATCHES[i::2]  # every batch once, every attention at least once
    ],
)
def test_given_indices(family, attention, images, every_third, record_property):
    """The index set comes from the test, not from the report."""
    model, inputs = family.model(attention=attention), family.inputs(images)
    with tokenprune.wrap(model, every_third):
        pruned = generate(model, inputs)
    keep = probes.every_third(family, model, images)
    expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs))
    difference = float((logits(pruned) - expected).abs().max())
    record_property("difference", difference)
    assert difference < family.tolerance


@pytest.mark.parametrize("family", SEVERAL, ids=lambda family: family.name)
@pytest.mark.parametrize("name", [name for name in ON_IMAGES if name not in ("none", "divprune", "pool")])
def test_every_other_policy(family, name, answers):
    model, inputs, policy = family.model(), family.inputs((2, 1)), POLICIES[name](keep=0.3)
    selections = answers(type(policy))
    with tokenprune.wrap(model, policy) as handle:
        pruned, report = generate(model, inputs), handle.report()
    keep = reference.keep_mask(inputs, report, protected(family, model, (2, 1)))
    rows = merged_rows(report, selections)
    expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs), rows=rows)
    assert report.kept < report.total
    assert (logits(pruned) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("policy", "kept"),
    [(DART(keep=22, strict_paper=True), [20, 20, 20]), (PruMerge(keep=22, strict_paper=True), None)],
    ids=["dart", "prumerge"],
)
def test_policies_that_count_for_themselves(policy, kept, answers):
    """As released, some answer another number of tokens than asked for; a unit at a time, each its own."""
    model, inputs, selections = LLAVA.model(), LLAVA.inputs((2, 1)), answers(type(policy))
    with tokenprune.wrap(model, policy) as handle:
        pruned, report = generate(model, inputs), handle.report()
    counts = [selection.indices.shape[1] for selection in selections]
    assert len(counts) == 3
    assert [unit.kept for unit in report.units] == counts == (kept or counts)
    assert 22 not in counts
    rows = {}
    for unit, selection in zip(report.units, selections, strict=True):
        if selection.features is not None:
            slots = unit.slots[unit.indices].tolist()
            rows |= {(unit.sample, slot): row for slot, row in zip(slots, selection.features[0], strict=True)}
    expected = reference.logits(
        model, inputs, reference.keep_mask(inputs, report), new_tokens(pruned, inputs), rows=rows
    )
    assert (logits(pruned) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("keep", [1, 3, 4])
def test_few_tokens_as_released(keep):
    """The class token and little else."""
    model = LLAVA.model()
    with tokenprune.wrap(model, VisionZip(keep=keep, strict_paper=True)) as handle:
        generate(model, LLAVA.inputs())
    assert handle.report().kept == keep


@pytest.mark.skipif(not PRE_ENCODES, reason="this transformers takes no encoded images")
@pytest.mark.parametrize("name", ["divprune", "cdpruner", "dart"])
def test_autocast_does_not_reach_the_selection(name):
    """Matrix products in half precision would choose other tokens."""
    model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
    with tokenprune.wrap(model, name, keep=17) as handle:
        features = model.get_image_features(inputs["pixel_values"])
        model(**{**inputs, "pixel_values": None, "mm_encoder_outputs": {"image": features}})
        expected = [unit.indices for unit in handle.report().units]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**{**inputs, "pixel_values": None, "mm_encoder_outputs": {"image": features}})
        found = [unit.indices for unit in handle.report().units]
    assert all(map(torch.equal, found, expected))


def both(images, videos):
    """One image and one video in a prompt: the two prompts of a family behind each other."""
    one, other = images.inputs((1,)), videos.inputs((1,))
    ids = torch.cat([one["input_ids"], other["input_ids"]], 1)
    return {**one, **other, "input_ids": ids, "attention_mask": torch.ones_like(ids), **images.extra(ids)}


MIXED = [
    pytest.param(BY_NAME[name.removesuffix("-video")], video, id=name.removesuffix("-video"))
    for name, video in BY_NAME.items()
    if video.modality == "video" and video.token == VIDEO and name.removesuffix("-video") in BY_NAME
]


@pytest.mark.parametrize(("images", "videos"), MIXED)
def test_image_and_video_in_one_prompt(images, videos):
    model, inputs = images.model(), both(images, videos)
    with tokenprune.wrap(model, "divprune", keep=0.3) as handle:
        pruned, report = generate(model, inputs), handle.report()
    assert {unit.kind for unit in report.units} == {"image", "video"}
    keep = reference.keep_mask(inputs, report)
    counted = torch.zeros_like(keep)
    for unit in report.units:
        counted[unit.sample, unit.slots] = True
    keep |= reference.visual(inputs) & ~counted  # newlines and class tokens; test_units.py says which
    expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs))
    assert (logits(pruned) - expected).abs().max() < images.tolerance

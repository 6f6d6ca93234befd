"""Contract 2 for videos: every policy that compares frames, over the families that take videos."""

import warnings

import pytest
import torch

import tokenprune
from tests import reference
from tests.default_layer_policies import LAYER_POLICIES
from tests.default_policies import POLICIES
from tests.families import BY_NAME, FAMILIES, FRAMES, LLAVA, VIDEOS
from tests.probes import generate, logits, merged_rows, mixing, new_tokens, protected
from tests.test_exactness import MIXED, both
from tests.test_modes import joined
from tokenprune import InputError, InvalidArgumentError, UnsupportedPolicyError
from tokenprune.errors import InvalidFeaturesError

ON_VIDEOS = [name for name, factory in POLICIES.items() if "image" not in factory().kinds]
# Families whose videos have no frames of one size: tokens that are left out by the processor, or pooled from any places
NO_FRAMES = ("video_llama_3", "molmo2")
EVERY_VIDEO = [family for family in FAMILIES if family.modality == "video"]


CLASS_TOKEN = "fastvid-sequential"  # as it is configured


def has_class_token(family):
    return family.model_type in ("llava_next_video", "video_llava", "internvl")


def compare(family, inputs, policy, answers, images, **options):
    """Logits of every step against the model on the tokens that are left; the report."""
    model, selections = family.model(), answers(type(policy))
    with tokenprune.wrap(model, policy, **options) as handle:
        pruned, report = generate(model, inputs), handle.report()
    assert report.kept < report.total
    apart = protected(family, model, images) if images else None
    keep = reference.keep_mask(inputs, report, apart)
    given = {"rows": merged_rows(report, selections), "compact": report.positions == "compact"}
    if given["rows"]:
        given["mix"] = mixing(inputs, report, selections)  # what else the decoder reads of a merged token
    expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs), **given)
    assert (logits(pruned) - expected).abs().max() < family.tolerance
    return report


@pytest.mark.parametrize("family", VIDEOS, ids=lambda family: family.name)
@pytest.mark.parametrize("name", ON_VIDEOS)
@pytest.mark.parametrize("videos", [(1,), (2, 1), (1, 0, 3)], ids=str)
def test_every_policy_that_compares_frames(family, name, videos, answers):
    if name == CLASS_TOKEN and not has_class_token(family):
        with pytest.raises(UnsupportedPolicyError, match="needs the class token of the vision tower"):
            tokenprune.wrap(family.model(), POLICIES[name](keep=0.3))
        return
    report = compare(family, family.inputs(videos), POLICIES[name](keep=0.3), answers, videos)
    assert {unit.kind for unit in report.units} == {"video"}
    assert len(report.units) == sum(videos)
    several_axes = family.name.startswith("qwen")
    assert report.positions == ("original" if several_axes else POLICIES[name]().positions)


@pytest.mark.parametrize("family", EVERY_VIDEO, ids=lambda family: family.name)
def test_every_family_that_takes_videos(family, answers):
    if family.model_type in NO_FRAMES:
        with pytest.raises(UnsupportedPolicyError, match="the frames of this video are not known"):
            compare(family, family.inputs((2, 1)), POLICIES["evs"](keep=0.3), answers, (2, 1))
        return
    compare(family, family.inputs((2, 1)), POLICIES["evs"](keep=0.3), answers, (2, 1))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, id=f"{name}-{family.name}")
        for family in FRAMES
        for name in ON_VIDEOS
        if name != CLASS_TOKEN or has_class_token(family)
    ],
)
def test_images_that_are_frames(family, name, answers):
    inputs = family.inputs((2, 3))
    report = compare(family, inputs, POLICIES[name](keep=0.3), answers, (2, 3), images_are_frames=True)
    assert [unit.kind for unit in report.units] == ["video", "video"]
    assert [unit.grid[0] for unit in report.units] == [6, 9]  # of three frames each


@pytest.mark.parametrize(("images", "videos"), [one for one in MIXED if one.id not in NO_FRAMES])
def test_images_beside_a_video_stay_whole(images, videos, answers):
    inputs = both(images, videos)
    model, policy = images.model(), POLICIES["evs"](keep=0.3)
    with tokenprune.wrap(model, policy) as handle:
        pruned, report = generate(model, inputs), handle.report()
    for unit in report.units:
        assert (unit.kept == unit.total) == (unit.kind == "image")
    keep = reference.keep_mask(inputs, report)
    counted = torch.zeros_like(keep)
    for unit in report.units:
        counted[unit.sample, unit.slots] = True
    keep |= reference.visual(inputs) & ~counted
    expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs))
    assert (logits(pruned) - expected).abs().max() < images.tolerance


@pytest.mark.parametrize("name", [*ON_VIDEOS, "framefusion"])
def test_a_prompt_with_images_only_is_left_alone_and_says_so(name):
    model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
    dense = model(**inputs).logits
    policy = {**POLICIES, **LAYER_POLICIES}[name](keep=0.3)
    with tokenprune.wrap(model, policy) as handle:
        with pytest.warns(UserWarning, match=f"policy '{policy.name}' prunes videos, and this prompt has images only"):
            out = model(**inputs).logits
        assert handle.report().kept == handle.report().total
    assert torch.equal(out, dense)


def test_images_and_videos_together_do_not_warn():
    images = BY_NAME["qwen2_5_vl"]
    model, inputs = images.model(), both(images, BY_NAME["qwen2_5_vl-video"])
    with warnings.catch_warnings(), tokenprune.wrap(model, "evs", keep=0.3):
        warnings.simplefilter("error")
        model(**inputs)


@pytest.mark.parametrize("name", ["framefusion", "holitom-inner", "prunevid-inside"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_prompt_of_images_and_videos_is_no_unit_of_a_policy_of_videos(name, first):
    families = [BY_NAME["qwen2_5_vl"], BY_NAME["qwen2_5_vl-video"]]
    model, inputs = families[0].model(), joined(*(families[i].inputs((1,)) for i in (first, 1 - first)))
    with tokenprune.wrap(model, name, keep=0.3, per="prompt"):
        with pytest.raises(UnsupportedPolicyError, match=f"policy '{name}' is about videos only: use per='image'"):
            model(**inputs)
    with tokenprune.wrap(model, name, keep=0.3, of="prompt") as handle:
        model(**inputs)
        assert [unit.kept < unit.total for unit in handle.report().units] == [unit == first for unit in (1, 0)]


def test_nan_in_an_image_that_the_first_policy_leaves_alone():
    families = BY_NAME["qwen2_5_vl"], BY_NAME["qwen2_5_vl-video"]
    model, inputs = families[0].model(), both(*families)
    inputs["pixel_values"] = inputs["pixel_values"] * torch.nan
    with tokenprune.wrap(model, ["evs", "divprune"], keep=0.3):
        with pytest.raises(InvalidFeaturesError, match="NaN or Inf at visual positions"):
            model(**inputs)


def test_one_budget_for_two_videos_of_a_prompt():
    family = BY_NAME["llava_onevision-video"]
    model, inputs = family.model(), family.inputs((2,))
    with tokenprune.wrap(model, "evs", keep=17, of="prompt") as handle:
        model(**inputs)
        assert [unit.kept for unit in handle.report().units] == [9, 8]


def test_frames_beside_a_video_are_refused():
    images = BY_NAME["qwen2_5_vl"]
    model, inputs = images.model(), both(images, BY_NAME["qwen2_5_vl-video"])
    with tokenprune.wrap(model, "evs", keep=0.3, images_are_frames=True):
        with pytest.raises(InputError, match="images_are_frames=True, and sample 0 has a video beside its images"):
            model(**inputs)


def test_images_with_crops_are_no_frames():
    family = BY_NAME["internvl"]
    model = family.model()
    with tokenprune.wrap(model, "evs", keep=0.3, images_are_frames=True):
        with pytest.raises(InputError, match="images_are_frames=True, and the images of sample 0 have crops or differ"):
            model(**family.inputs((2,)))


@pytest.mark.parametrize("name", ON_VIDEOS)
@pytest.mark.parametrize("per", ["frame", "crop", "prompt"])
def test_policies_that_compare_frames_need_whole_videos(name, per):
    with pytest.raises(
        InvalidArgumentError, match=f"per='{per}' shows policy '{POLICIES[name]().name}' no whole video"
    ):
        POLICIES[name](keep=0.3, per=per)

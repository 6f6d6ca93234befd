"""The projector as a function of single tokens: what the model itself made of its patches."""

from dataclasses import dataclass

import pytest
import torch
from accelerate import cpu_offload

import tokenprune
from tests import test_layouts
from tests.families import BY_NAME, FAMILIES, LLAVA
from tests.test_layouts import MIXED
from tokenprune.adapters import lookup
from tokenprune.errors import UnsupportedPolicyError

PROJECTED = [one for one in FAMILIES if lookup(one.model_type).project and one.name not in MIXED]
# name -> (norm, over each patch, gated)
PERCEPTRONS = {
    "llava": ("none", True, False),
    "llava-pixtral": ("none", True, False),
    "vipllava": ("layer", True, False),
    "internvl": ("layer", False, False),
    "qwen2_vl": ("layer", True, False),
    "qwen2_5_vl": ("rms", True, False),
    "qwen3_vl": ("layer", True, False),
    "cohere2_vision": ("none", True, True),
    "janus": ("none", True, False),
}


@dataclass(kw_only=True)
class Look(test_layouts.Look):
    """Notes more of what it is shown."""

    needs = frozenset({"features", "encoder", "projection"})


class OnlyProjection(Look):
    needs = frozenset({"projection"})


def look(model, inputs):
    policy = Look(keep=1)
    with torch.no_grad(), tokenprune.wrap(model, policy):
        model(**inputs)
    return policy.seen[-1]


@pytest.mark.parametrize("family", PROJECTED, ids=lambda family: family.name)
def test_it_makes_the_rows_of_their_patches(family):
    shown = look(family.model(), family.inputs((2, 1)))
    torch.testing.assert_close(shown.projection.apply(shown.encoder), shown.features, rtol=1e-5, atol=1e-5)


def test_any_leading_shape():
    shown = look(LLAVA.model(), LLAVA.inputs())
    one = shown.projection.apply(shown.encoder[0, 3])
    several = shown.projection.apply(shown.encoder[None, :, :6])
    torch.testing.assert_close(one, shown.features[0, 3])
    torch.testing.assert_close(several, shown.features[None, :, :6])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_exact_is_float32_whatever_the_model(name):
    family = BY_NAME[name]
    half = look(family.model(dtype=torch.bfloat16), family.inputs(dtype=torch.bfloat16))
    rounded = family.model(dtype=torch.bfloat16).float()  # the same weights
    full = look(rounded, family.inputs())
    exact = half.projection.exact(half.encoder)
    assert (exact.dtype, half.projection.apply(half.encoder).dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(exact, full.projection.apply(half.encoder.float()))


@pytest.mark.parametrize("name", PERCEPTRONS)
def test_the_perceptron_is_described(name):
    shown = look(BY_NAME[name].model(), BY_NAME[name].inputs())
    mlp = shown.projection.mlp()
    assert (mlp.norm, mlp.per_patch, mlp.gate is not None) == PERCEPTRONS[name]
    torch.testing.assert_close(mlp(shown.encoder), shown.features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["paligemma", "gemma3", "glm4v", "idefics3", "perception_lm"])
def test_other_projectors_have_no_such_description(name):
    shown = look(BY_NAME[name].model(), BY_NAME[name].inputs())
    with pytest.raises(UnsupportedPolicyError, match=r"no two-layer perceptron.*estimator='zeroth_order'"):
        shown.projection.mlp()


@torch.no_grad()
def test_copies_follow_the_weights():
    model, inputs, policy = LLAVA.model(), LLAVA.inputs(), Look(keep=1)
    with tokenprune.wrap(model, policy):
        model(**inputs)
        shown = policy.seen[0]
        before, first = shown.projection.exact(shown.encoder), shown.projection.mlp()
        assert shown.projection.mlp() is first
        model.model.multi_modal_projector.linear_2.weight.mul_(2.0)
        torch.testing.assert_close(shown.projection.exact(shown.encoder), shown.projection.apply(shown.encoder))
        assert not torch.allclose(shown.projection.exact(shown.encoder), before)
        torch.testing.assert_close(shown.projection.mlp()(shown.encoder), shown.projection.apply(shown.encoder))


@torch.no_grad()
@pytest.mark.parametrize("path", ["visual.downsample", "visual.merger.proj"])
def test_copies_follow_every_module_and_replaced_weights(path):
    family = BY_NAME["glm4v"]
    model, policy = family.model(), Look(keep=1)
    with tokenprune.wrap(model, policy):
        model(**family.inputs())
        shown = policy.seen[0]
        shown.projection.exact(shown.encoder)
        weight = model.model.get_submodule(path).weight
        weight.data = 2.0 * weight.data
        torch.testing.assert_close(shown.projection.exact(shown.encoder), shown.projection.apply(shown.encoder))


def test_needing_the_projection_is_needing_what_it_projects():
    model, policy = LLAVA.model(), OnlyProjection(keep=1)
    with torch.no_grad(), tokenprune.wrap(model, policy):
        model(**LLAVA.inputs())
    shown = policy.seen[0]
    torch.testing.assert_close(shown.projection.apply(shown.encoder), shown.features)


def test_an_offloaded_projector_is_run_as_it_is_and_not_copied():
    model = LLAVA.model()
    cpu_offload(model, torch.device("cpu"))
    shown = look(model, LLAVA.inputs())
    torch.testing.assert_close(shown.projection.apply(shown.encoder), shown.features)
    for use in (lambda: shown.projection.exact(shown.encoder), shown.projection.mlp):
        with pytest.raises(UnsupportedPolicyError, match="quantised or offloaded"):
            use()


MIXING = [name for name in ("llava_onevision", "got_ocr2", "granite4_vision") if name in BY_NAME]


@pytest.mark.parametrize("name", MIXING)
def test_models_whose_tokens_are_no_function_of_their_patches(name):
    """llava_onevision is one for images; its videos are interpolated behind the projector."""
    model = BY_NAME[name].model()
    if name == "llava_onevision":
        with pytest.raises(UnsupportedPolicyError, match="needs the tower's features"):
            look(model, BY_NAME["llava_onevision-video"].inputs())
    else:
        with pytest.raises(UnsupportedPolicyError, match="needs the tower features of each"):
            tokenprune.wrap(model, Look(keep=1))

"""Stage `vision` beside policies that look inside the tower, and what `wrap` is told about plain transformers."""

import pytest
import torch

import tokenprune
from tests.families import BY_NAME
from tests.vision_towers import BY_NAME as TOWERS
from tokenprune import EViT, InvalidArgumentError, RandomBlocks, ToMe

LOOKING = ("fastervlm", "visionzip", "prumerge", "hiprune", "vispruner", "holov")


def snapshot(model):
    configs = [(name, module.config) for name, module in model.named_modules() if hasattr(module, "config")]
    return [(name, id(config), type(config), sorted(vars(config))) for name, config in configs]


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "internvl", "qwen2_5_vl"])
@pytest.mark.parametrize("name", LOOKING)
def test_policies_that_look_inside_a_shortened_tower(family, name):
    family = BY_NAME[family]
    model, inputs = family.model(), family.inputs((2, 1))
    before = snapshot(model)
    with torch.no_grad():
        dense = model(**inputs).logits
        policy = tokenprune.get_policy(name)(keep=4)
        with tokenprune.wrap(model, [ToMe(r=2), policy]) as handle:
            model(**inputs)
            assert {unit.kept for unit in handle.report().units} == {4}
            assert handle.report().towers
        assert snapshot(model) == before
        assert torch.equal(model(**inputs).logits, dense)


@pytest.mark.parametrize("name", ["fastervlm", "visionzip"])
def test_nothing_merged_is_the_policy_alone(name):
    family = BY_NAME["llava"]
    model, inputs = family.model(), family.inputs((2, 1))
    policy = tokenprune.get_policy(name)(keep=6)
    with torch.no_grad():
        with tokenprune.wrap(model, policy):
            alone = model(**inputs).logits
        with tokenprune.wrap(model, [ToMe(r=0), policy]):
            assert torch.equal(model(**inputs).logits, alone)
        with tokenprune.wrap(model, [ToMe(r=4), policy]):
            assert not torch.equal(model(**inputs).logits, alone)


@pytest.mark.parametrize("policy", [ToMe(r=0), ToMe(keep=1.0), ToMe(keep=1000), EViT(keep_rate=1.0), RandomBlocks(r=0)])
def test_a_forward_that_keeps_all_is_reported(policy):
    tower = TOWERS["vit"]
    with tokenprune.wrap(tower.model(), policy) as handle:
        tower.run(handle._stage.parts.model)
        assert {(unit.kept, unit.total) for unit in handle.report().units} == {(36, 36)}
        assert "nothing was removed" not in str(handle.report())


def test_the_last_forward_is_reported():
    model = TOWERS["vit"].model()
    with tokenprune.wrap(model, ToMe(keep=20)) as handle:
        model(torch.randn(2, 3, 24, 24))
        assert [(unit.kept, unit.total) for unit in handle.report().units] == [(20, 36)] * 2
        model(torch.randn(1, 3, 16, 16), interpolate_pos_encoding=True)
        assert [(unit.kept, unit.total) for unit in handle.report().units] == [(16, 16)]


@pytest.mark.parametrize(
    "options",
    [
        {"per": "prompt"},
        {"per": "banana"},
        {"of": "image"},
        {"restore": "x"},
        {"restore": False},
        {"positions": "compact"},
        {"logits": "full"},
        {"tokenizer": 3},
        {"timing": True},
        {"drop_empty_rows": True},
        {"images_are_frames": True},
    ],
    ids=str,
)
def test_what_is_about_a_language_model_is_refused(options):
    with pytest.raises(InvalidArgumentError, match=next(iter(options))) as caught:
        tokenprune.wrap(TOWERS["vit"].model(), "tome", keep=10, **options)
    assert str(caught.value).endswith(".")


def test_the_control_none():
    model = TOWERS["vit"].model()
    with tokenprune.wrap(model, [ToMe(r=2), "none"]) as handle:
        assert [policy.name for policy in handle.policies] == ["tome"]
    with pytest.raises(InvalidArgumentError, match="'none' leaves"):
        tokenprune.wrap(model, "none")

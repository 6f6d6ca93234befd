"""What cannot be done inside vision transformers gets a sentence, and nothing is left half-wrapped."""

import pytest
import torch

import tokenprune
from tests.probes import same
from tests.vision_probes import Shuffled, everything, few_towers, identical
from tests.vision_towers import BY_NAME, REFUSED, TOWERS
from tokenprune import STA, DivPrune, EViT, FastV, ToMe
from tokenprune.blocks import Reduction
from tokenprune.errors import (
    AlreadyWrappedError,
    InvalidArgumentError,
    PolicyError,
    TokenPruneError,
    UnsupportedModelError,
    UnsupportedPolicyError,
)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("name", "build"), REFUSED, ids=[name for name, _ in REFUSED])
def test_models_that_cannot_be_reduced(name, build):
    model = build()
    before = sorted(vars(model))
    with pytest.raises(UnsupportedModelError, match=type(model).__name__):
        tokenprune.wrap(model, ToMe(r=1))
    assert sorted(vars(model)) == before


@few_towers
def test_wrapped_already(tower):
    model = tower.model()
    with tokenprune.wrap(model, ToMe(r=1)), pytest.raises(AlreadyWrappedError, match="remove"):
        tokenprune.wrap(model, ToMe(r=1))
    tokenprune.wrap(model, ToMe(r=1)).remove()


@pytest.mark.parametrize("tower", [one for one in TOWERS if not one.has_class], ids=lambda tower: tower.name)
def test_evit_needs_a_class_token(tower):
    model = tower.model()
    dense = tower.run(model)
    before = everything(model)
    with pytest.raises(UnsupportedPolicyError, match="class token"):
        tokenprune.wrap(model, EViT(keep_rate=0.5))
    assert same(before, everything(model))
    assert identical(tower.run(model), dense)


@pytest.mark.parametrize("name", ["clip", "siglip", "timm-vit-avg"])
def test_sta_needs_a_clip(name):
    tower = BY_NAME[name]
    model = tower.model()
    with pytest.raises((UnsupportedPolicyError, InvalidArgumentError)) as caught, tokenprune.wrap(model, STA(r=2)):
        tower.run(model)
    assert str(caught.value).endswith(".")
    assert "clip" in str(caught.value) or "slot" in str(caught.value)


@few_towers
@pytest.mark.parametrize("policy", [DivPrune(keep=4), FastV(layer=2, keep=4)], ids=lambda policy: policy.name)
def test_policies_of_other_stages(tower, policy):
    model = tower.model()
    before = everything(model)
    for given in (policy, [ToMe(r=1), policy]):
        with pytest.raises(TokenPruneError) as caught:
            tokenprune.wrap(model, given)
        assert type(model).__name__ in str(caught.value) or policy.name in str(caught.value)
    assert same(before, everything(model))


def test_two_policies_in_one_tower():
    tower = BY_NAME["vit"]
    with pytest.raises(InvalidArgumentError, match=r"tome.*evit"):
        tokenprune.wrap(tower.model(), [ToMe(r=1), EViT(keep_rate=0.5)])


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda: ToMe(r=[1] * 9), "9 entries"),
        (lambda: ToMe(keep=1), "keep=1"),
        (lambda: ToMe(), "without a budget"),
        (lambda: EViT(keep_rate=0.5, blocks=(7,)), "7"),
    ],
)
def test_schedules_that_the_tower_does_not_have(policy, said):
    tower = BY_NAME["vit"]
    model = tower.model()
    dense = tower.run(model)
    with pytest.raises(InvalidArgumentError, match=said), tokenprune.wrap(model, policy()):
        tower.run(model)
    assert identical(tower.run(model), dense)


WRONG = {
    "too many": lambda order, k: order,
    "not distinct": lambda order, k: order[:, :k].clamp_max(3),
    "outside": lambda order, k: order[:, :k] + order.shape[1],
    "prefix moved": lambda order, k: order[:, :k].flip(1),
    "floats": lambda order, k: order[:, :k].float(),
}


@pytest.mark.parametrize("how", WRONG)
def test_answers_that_are_no_reduction(how):
    class Bad(Shuffled):
        def reduce(self, tokens, k):
            return Reduction(order=WRONG[how](torch.arange(tokens.shape[1]).expand(tokens.shape), tokens.prefix + k))

    tower = BY_NAME["vit"]
    model = tower.model()
    dense = tower.run(model)
    with tokenprune.wrap(model, Bad(keep=0.5)) as handle:
        with pytest.raises(PolicyError):
            tower.run(model)
        handle.enabled = False
        assert identical(tower.run(model), dense)
    assert identical(tower.run(model), dense)


def answering(source):
    """A policy that merges, and says what carries each token by `source(tokens, m)`."""

    class Merging(Shuffled):
        merges = True

        def reduce(self, tokens, k):
            m = tokens.prefix + k
            order = torch.arange(m).expand(tokens.shape[0], m)
            return Reduction(order=order, source=source(tokens, m))

    return Merging(keep=0.5)


def carried_by_the_last(tokens, m):
    return torch.arange(tokens.shape[1]).clamp_max(m - 1).expand(tokens.shape)


def dropped(tokens, m):
    return torch.where(torch.arange(tokens.shape[1]) < m, torch.arange(tokens.shape[1]), -1).expand(tokens.shape)


def dropped_of_larger_images(tokens, m):
    return (dropped if tokens.total > 36 else carried_by_the_last)(tokens, m)


def test_a_policy_that_merges_may_drop_nothing():
    tower = BY_NAME["vit"]
    model = tower.model()
    with tokenprune.wrap(model, answering(carried_by_the_last)):
        tower.run(model)
    with tokenprune.wrap(model, answering(dropped)), pytest.raises(PolicyError, match=r"source outside 0\.\."):
        tower.run(model)


def test_answers_for_another_size_are_looked_at_too():
    tower = BY_NAME["dinov2"]
    model, larger = tower.model(), {"pixel_values": torch.randn(1, 3, 32, 24)}
    with tokenprune.wrap(model, answering(dropped_of_larger_images)):
        tower.run(model)
        for _ in range(2):
            with pytest.raises(PolicyError, match="source outside"):
                tower.run(model, larger)
        tower.run(model)

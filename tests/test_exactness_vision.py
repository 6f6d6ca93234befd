"""Contracts 1 and 2 inside vision transformers: keep-all is the identity, reduced is what it says."""

import pytest
import torch

import tokenprune
from tests.probes import same
from tests.vision_probes import POLICIES, TOLERANCE, by_hand, difference, every_tower, everything, identical, suits
from tests.vision_towers import BY_NAME, TOWERS
from tokenprune import EViT, RandomBlocks, ToMe


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# The loop computes in float64. In float32 a tower is up to 1.0e-5 off it by itself (timm-eva, whose states reach 12),
# in float64 what is left are the sums that policies make in float32.
PRECISIONS = {torch.float32: 2e-5, torch.float64: 5e-6}
every_precision = pytest.mark.parametrize("dtype", PRECISIONS, ids=["float32", "float64"])


@every_tower
@every_precision
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_reference_alone_is_the_model(tower, attention, dtype):
    model = tower.model(attention=attention, dtype=dtype)
    found, calls = by_hand(tower, model, None)
    assert difference(found, tower.run(model)) < PRECISIONS[dtype]
    assert calls[0][-1].x.shape[1] == tower.prefix + tower.patches


@pytest.mark.parametrize(
    ("tower", "name"),
    [pytest.param(one, name, id=f"{one.name}-{name}") for one in TOWERS for name in POLICIES if suits(one, name)],
)
@pytest.mark.parametrize(("attention", "dtype"), [("sdpa", torch.float32), ("eager", torch.float64)], ids=str)
def test_reduced_equals_the_manual_computation(tower, name, attention, dtype, record_property):
    model, policy = tower.model(attention=attention, dtype=dtype), POLICIES[name]()
    dense = tower.run(model)
    expected, calls = by_hand(tower, model, policy)
    with tokenprune.wrap(model, policy):
        found = tower.run(model)
    assert calls[0][-1].x.shape[1] == tower.prefix + policy.counts(len(calls[0]), tower.patches, tower.grid)[-1]
    assert calls[0][-1].x.shape[1] < tower.prefix + tower.patches
    off = difference(found, expected)
    record_property("difference", off)
    assert off < PRECISIONS[dtype]
    last = next(one for one in ("logits", "pooler_output", "image_embeds", "last_hidden_state") if one in dense)
    assert dense[last].shape != expected[last].shape or (dense[last] - expected[last]).abs().max() > 1e-2
    assert identical(tower.run(model), dense)


@every_tower
@pytest.mark.parametrize("name", ["tome", "evit", "random", "sta"])
def test_an_image_alone_is_as_in_a_batch(tower, name):
    if not suits(tower, name):
        return
    model, inputs = tower.model(), tower.inputs(3)
    alone = {key: value[1:2] if len(value) == 3 else value for key, value in inputs.items()}
    with tokenprune.wrap(model, POLICIES[name]()):
        together, single = tower.run(model, inputs), tower.run(model, alone)
    for key, value in single.items():
        if "text" not in key:
            assert (value[0] - together[key][1]).abs().max() < TOLERANCE, key


KEEPING = [
    lambda: ToMe(r=0),
    lambda: ToMe(keep=1.0),
    lambda: RandomBlocks(keep=1.0),
    lambda: EViT(keep_rate=1.0, fuse=False),
]


@every_tower
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keep_all_is_bit_identical(tower, attention):
    model = tower.model(attention=attention)
    dense = tower.run(model)
    for make in KEEPING:
        if not isinstance(make(), EViT) or tower.has_class:
            with tokenprune.wrap(model, make()):
                assert identical(tower.run(model), dense), make()
    with tokenprune.wrap(model, ToMe(r=3)) as handle:
        assert not identical(tower.run(model), dense)
        handle.enabled = False
        assert identical(tower.run(model), dense)
        handle.enabled = True
        assert not identical(tower.run(model), dense)


@every_tower
def test_remove_restores(tower):
    model = tower.model()
    dense = tower.run(model)
    before = everything(model)
    handle = tokenprune.wrap(model, POLICIES["tome"]())
    assert list(model.state_dict()) == list(before["weights"])
    tower.run(model)
    handle.remove()
    handle.remove()
    assert same(before, everything(model))
    assert identical(tower.run(model), dense)


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "vit"])
def test_images_of_another_size(name):
    tower = BY_NAME[name]
    model, policy = tower.model(), ToMe(r=3)
    kwargs = {"interpolate_pos_encoding": True} if name == "vit" else {}
    images = [{"pixel_values": torch.randn(2, 3, h, w), **kwargs} for h, w in ((24, 24), (32, 20), (16, 24))]
    expected = [by_hand(tower, model, policy, one)[0] for one in images]
    with tokenprune.wrap(model, policy):
        for i in (0, 1, 2, 0):
            assert difference(tower.run(model, images[i]), expected[i]) < TOLERANCE

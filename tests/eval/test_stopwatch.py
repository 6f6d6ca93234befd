import pytest
import torch
from PIL import Image

from tokenprune import Random, wrap
from tokenprune.encoding import encode
from tokenprune.eval import shapes
from tokenprune.eval.stopwatch import Stopwatch

PICTURE = shapes.CHECKPOINT.parent / "samples" / "scene-10001.png"


@pytest.fixture(scope="module")
def asked():
    model, processor = shapes.load()
    return model, encode(processor, model, "how many objects are there?", [Image.open(PICTURE).convert("RGB")])[0]


@pytest.mark.parametrize("policy", ["none", Random(keep=0.25)])
def test_parts_of_a_generate_follow_each_other(asked, policy):
    model, inputs = asked
    before = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    with wrap(model, policy), Stopwatch(model) as watch:
        after = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert watch.further == 2
    assert min(watch.tower, watch.prefill, watch.decode) > 0
    assert sorted(times := [t for pair in zip(watch.entered, watch.ended, strict=True) for t in pair]) == times
    assert policy != "none" or torch.equal(before, after)


def test_nothing_of_it_is_left(asked):
    model, _ = asked
    hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]
    with pytest.raises(KeyError), Stopwatch(model):
        raise KeyError
    assert [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()] == hooks
    assert not {"get_image_features", "get_video_features"} & set(vars(model.model))


def test_an_encoder_that_calls_the_other_is_timed_once(asked, monkeypatch):
    model, inputs = asked
    inner = model.model.get_image_features
    both = lambda **given: model.model.get_image_features(**given)  # noqa: E731
    monkeypatch.setattr(model.model, "get_video_features", both, raising=False)
    with Stopwatch(model) as watch, torch.no_grad():
        clock = iter(range(100))
        watch._now = lambda: next(clock)
        model.model.get_video_features(pixel_values=inputs["pixel_values"])
    assert watch.tower == 1  # the clock was looked at twice
    assert model.model.get_image_features == inner

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokenprune import wrap
from tokenprune.errors import InvalidArgumentError
from tokenprune.eval import shapes
from tokenprune.eval.shapes.evaluate import accuracy, overall
from tokenprune.policies import Resize


@pytest.mark.parametrize(
    ("keep", "multiple", "before", "after"),
    [
        (0.5, 8, (128, 128), (88, 88)),  # 11 x 11 = 121 of 128 tokens: 11 x 12 would be 132
        (64, 8, (128, 128), (64, 64)),
        (1.0, 28, (280, 140), (280, 140)),
        (1.0, 28, (300, 150), (280, 140)),  # whole cells only
        (0.25, 28, (560, 280), (280, 140)),
        (25, 1, (1, 100), (1, 25)),  # a line stays a line
        (0.01, 8, (64, 64), (8, 8)),
        (6, 1, (3, 3), (2, 3)),  # sqrt(6) = 2.4: one more row fits
    ],
)
def test_sides_by_hand(keep, multiple, before, after):
    assert Resize(keep=keep, multiple=multiple).size(*before) == after


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_budget_is_kept_and_nearly_used(columns, rows, data):
    k = data.draw(st.integers(1, columns * rows))
    width, height = Resize(keep=k, multiple=7).size(7 * columns + 3, 7 * rows + 6)
    c, r = width // 7, height // 7
    assert 1 <= c <= columns
    assert 1 <= r <= rows
    assert c * r <= k
    assert (c + 1) * (r + 1) > k
    if k == columns * rows:
        assert (c, r) == (columns, rows)


def test_a_share_of_pixels_keeps_the_aspect_ratio():
    small = Resize(keep=0.25).image(Image.new("RGB", (900, 600)))
    assert small.size == (450, 300)


def test_errors():
    with pytest.raises(InvalidArgumentError, match="multiple=0 is not an int of at least 1"):
        Resize(multiple=0)
    with pytest.raises(InvalidArgumentError, match=r"resample='lanczoss' .* \(did you mean 'lanczos'\?\)"):
        Resize(resample="lanczoss")
    with pytest.raises(InvalidArgumentError, match="keep=None is no budget"):
        Resize().image(Image.new("RGB", (9, 9)))


@pytest.fixture
def embedded():
    """The model with its position embedding stretched, as the docstring says."""
    model, processor = shapes.load()
    hook = model.model.vision_tower.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"interpolate_pos_encoding": True}), with_kwargs=True
    )
    yield model, processor
    hook.remove()


def test_half_the_picture_on_a_fixed_tower(embedded):
    model, processor = embedded
    samples = list(shapes.held_out(60))
    small = Resize(keep=0.5, multiple=8).image(samples[0].image, size=(128, 128))
    processor.image_processor.size = {"height": small.height, "width": small.width}
    inputs = processor(text=shapes.prompt("what color is the star?"), images=[small], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 121
    counts = accuracy(model, processor, [shapes.Sample(small, one.question) for one in samples[:1]])
    assert sum(total for _, total in counts.values()) == 1
    assert overall(accuracy(model, processor, samples)) > 0.6  # the processor shrinks the others itself


def test_the_full_size_changes_nothing(embedded):
    model, processor = embedded
    sample = next(shapes.held_out(1))
    full = Resize(keep=1.0, multiple=8).image(sample.image, size=(128, 128))
    inputs = processor(text=shapes.prompt(sample.question.text), images=[full], return_tensors="pt")
    with torch.inference_mode():
        stretched = model(**inputs).logits
        plain = shapes.load()[0](**inputs).logits
    assert torch.equal(stretched, plain)


def test_wrap_says_how_to_use_it(embedded):
    with pytest.raises(InvalidArgumentError, match="'resize' works at stage 'processor'.*tokenprune show resize"):
        wrap(embedded[0], "resize", keep=0.5)

"""Soft retention on tiny models of several families."""

import pytest
import torch

from tests.families import BY_NAME
from tests.learn.test_covipal import Fixed
from tokenprune import wrap
from tokenprune.errors import UnsupportedModelError
from tokenprune.learn import Recipe, covipal
from tokenprune.learn.data import Encoded
from tokenprune.learn.teacher import Teacher
from tokenprune.predictors import PruningModule

# One mask for all: 1-D and M-RoPE, crops, DeepStack
TAUGHT = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "mistral3")


def batch(name):
    """A model and a batch whose last two tokens are the answers."""
    torch.manual_seed(0)
    family = BY_NAME[name]
    inputs = family.inputs((1, 1))
    answer = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    answer[:, -2:] = True
    return family.model(), Encoded(inputs, answer)


@pytest.mark.parametrize("name", TAUGHT)
def test_shut_gates_are_the_pruned_model_and_open_ones_the_dense(name):
    model, given = batch(name)
    with wrap(model, Fixed(places=torch.arange(5), keep=5), logits="full"), torch.no_grad():
        expected = model(**given.inputs).logits[:, -3:-1].flatten(0, 1)
    teacher = Teacher(model)
    with teacher.attached(), torch.no_grad():
        lesson = teacher.lesson(given)
        teacher.check(lesson)
        gates = [torch.full(group.places.shape[:2], -1e30) for group in lesson.groups]
        for one in gates:
            one[:, :5] = 0.0
        found = teacher.retold(lesson.places, torch.cat([one.flatten() for one in gates]))
    assert (found - lesson.logits).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_one_module_fits_any_family(name):
    model, given = batch(name)
    module, teacher = PruningModule(width=64, hidden=8, layers=1, heads=2), Teacher(model)
    with teacher.attached():
        lesson = teacher.lesson(given)
        gates = [torch.full(group.tokens.shape, 0.1) for group in lesson.groups]
        worth, _ = covipal._worth(teacher, lesson, gates, Recipe())
        scores = [
            module(one.tokens.features, one.tokens.text, one.tokens.text_mask, one.tokens.grid) for one in lesson.groups
        ]
    assert [one.shape for one in worth] == [one.shape for one in scores]
    assert all(one.std(1).min() > 0.9 for one in worth)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exaone4_5", "one mask for all layers"),  # sliding windows
        ("lfm2_vl", "one mask for all layers"),  # convolutions
        ("gemma3n", "one mask for all layers"),
        ("gemma3", "masks in front of its decoder"),
    ],
)
def test_a_decoder_that_does_not_read_one_mask_is_refused(name, words):
    model, given = batch(name)
    teacher = Teacher(model)
    with teacher.attached(), pytest.raises(UnsupportedModelError, match=words):
        teacher.check(teacher.lesson(given))

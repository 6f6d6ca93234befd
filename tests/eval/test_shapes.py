"""The embedded model's scenes and questions, each answer derived a second time from the text and the objects alone."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.eval import shapes
from tokenprune.eval.shapes.clip import named
from tokenprune.eval.shapes.language import UNK, WORDS, tokenizer
from tokenprune.eval.shapes.questions import COLOR_NAMES, KINDS, NUMBERS, ask
from tokenprune.eval.shapes.scenes import COLORS, GRID, SHAPES, SIZE, scene, stream

SEEDS = st.integers(0, 10**6)


def one(values):
    """The only element; fails where an answer would not be unique."""
    values = list(values)
    assert len(values) == 1, values
    return values[0]


def derive(text, items):
    """The answer to a question, from its words and the objects. Shares no code with the generator."""
    said = re.findall(r"[a-z]+", text)
    colors = [w for w in said if w in COLORS]
    shapes_ = [s for w in said for s in SHAPES if w in (s, s + "s", s + "es")]
    edge = next((w for w in said if w in ("leftmost", "rightmost", "highest", "lowest")), None)
    if edge:
        key = (lambda o: o.x) if edge.endswith("most") else (lambda o: o.y)
        sign = 1 if edge in ("leftmost", "highest") else -1
        found = one(o for o in items if sign * key(o) == min(sign * key(p) for p in items))
        return found.color if "color" in said else found.shape
    if "many" in said:
        return NUMBERS[sum(o.shape in shapes_ for o in items) if shapes_ else len(items)]
    if "there" in said:
        return "yes" if any(o.shape == shapes_[0] and o.color == colors[0] for o in items) else "no"
    if "left" in said or "above" in said:
        a, b = (one(o for o in items if o.shape == s) for s in shapes_)
        return "yes" if (a.x < b.x if "left" in said else a.y < b.y) else "no"
    if "color" in said:
        return one(o.color for o in items if o.shape == shapes_[0])
    return one(o.shape for o in items if o.color == colors[0])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(list(KINDS)))
def test_answers_follow_from_the_objects(seed, kind):
    rng = stream("train", seed)
    drawn = scene(rng)
    question = ask(drawn.items, kind, rng)
    if question is not None:
        assert question.answer == derive(question.text, drawn.items)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_objects_keep_apart_and_own_their_patches(seed):
    drawn = scene(stream("test", seed))
    assert drawn.image.shape == (SIZE, SIZE, 3)
    assert 2 <= len(drawn.items) <= 6
    for i, item in enumerate(drawn.items):
        assert item.side / 2 < min(item.x, item.y)
        assert max(item.x, item.y) < SIZE - item.side / 2
        for other in drawn.items[:i]:
            assert max(abs(item.x - other.x), abs(item.y - other.y)) > (item.side + other.side) / 2
        rows, columns = np.nonzero(drawn.owner == i)
        assert len(rows) > 0, "an object without a single patch cannot be seen"
        near = np.abs(np.stack([columns, rows]) + 0.5 - np.array([[item.x], [item.y]]) * GRID / SIZE)
        assert near.max() <= (item.side / 2 * GRID / SIZE) + 0.5


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_an_object_has_the_colour_it_is_named_after(seed):
    """Nearest named colour of the pixels at the centre of every solid object."""
    drawn = scene(stream("test", seed))
    for item in drawn.items:
        if item.shape != "ring":
            seen = drawn.image[int(item.y), int(item.x)].astype(float)
            nearest = min(COLORS, key=lambda name: np.linalg.norm(seen - COLORS[name]))
            assert nearest == item.color


def test_the_same_seed_draws_the_same_scene():
    first, again = (scene(stream("train", 7)) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.items == again.items
    assert [s.question for s in shapes.held_out(20)] == [s.question for s in shapes.held_out(20)]


def test_train_and_test_never_share_a_scene():
    train = {scene(stream("train", seed)).image.tobytes() for seed in range(150)}
    test = {scene(stream("test", seed)).image.tobytes() for seed in range(150)}
    assert len(train) == len(test) == 150
    assert not train & test


def test_held_out_can_be_entered_anywhere():
    later = [s.question for s in shapes.held_out(30)][10:]
    assert later == [s.question for s in shapes.held_out(20, first=10)]


def test_questions_are_balanced():
    asked = [sample.question for sample in shapes.held_out(2100)]
    kinds = Counter(q.kind for q in asked)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 0.75 * len(asked) / len(KINDS)
    for kind in ("exist", "relation"):
        answers = Counter(q.answer for q in asked if q.kind == kind)
        assert abs(answers["yes"] / answers.total() - 0.5) < 0.1
    for kind, limit in (("color", 0.25), ("shape", 0.25), ("count", 0.3), ("count_shape", 0.45), ("extreme", 0.15)):
        answers = Counter(q.answer for q in asked if q.kind == kind)
        assert max(answers.values()) / answers.total() < limit, kind


def test_every_word_is_in_the_vocabulary():
    words = tokenizer()
    unknown = words.convert_tokens_to_ids(UNK)
    for sample in shapes.held_out(300):
        ids = words(f"{sample.question.text} {sample.question.answer}").input_ids
        assert unknown not in ids
        assert len(set(WORDS)) == len(WORDS) == len(words)


def test_named_objects():
    drawn = scene(stream("train", 3))
    item = drawn.items[0]
    assert 0 in named(f"is there a {item.color} {item.shape}?", drawn.items)
    assert named("how many objects are there?", drawn.items) == []
    absent = next(c for c in COLOR_NAMES if c not in {o.color for o in drawn.items})
    assert named(f"what shape is the {absent} object?", drawn.items) == []


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: stream("validation", 0), "split='validation'"),
        (lambda: stream("train", -1), "seed=-1"),
        (lambda: list(shapes.held_out(0)), "n=0"),
        (lambda: list(shapes.held_out(5, kinds=("weather",))), "weather"),
        (lambda: ask([], "weather", None), "weather"),
    ],
)
def test_bad_input_gets_a_sentence(call, told):
    with pytest.raises(ValueError, match=told):
        call()

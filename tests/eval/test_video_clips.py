"""The clips and their questions, each answer derived a second time from the text and the actors alone."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.eval import shapes
from tokenprune.eval.shapes.language import UNK, VIDEO_WORDS, WORDS, tokenizer
from tokenprune.eval.shapes.questions import NUMBERS
from tokenprune.eval.shapes.scenes import COLORS, PATCH, SHAPES, SIZE, stream
from tokenprune.eval.shapes.video_clips import FRAMES, NOISE, clip
from tokenprune.eval.shapes.video_heldout import one_frame, shuffled
from tokenprune.eval.shapes.video_questions import KINDS, ask

SEEDS = st.integers(0, 10**6)


def one(values):
    """The only element; fails where an answer would not be unique."""
    values = list(values)
    assert len(values) == 1, values
    return values[0]


def presence(actor, frames):
    return [actor.at(t) is not None for t in range(frames)]


def way(actor, frames):
    """Pixels right and down between its first and its last sight."""
    seen = [item for t in range(frames) if (item := actor.at(t))]
    return seen[-1].x - seen[0].x, seen[-1].y - seen[0].y


def derive(text, actors, frames):
    """The answer to a question, from its words and where the actors are. Shares no code with the generator."""
    said = re.findall(r"[a-z]+", text)
    named = [w for w in said if w in SHAPES]
    moving = [a for a in actors if way(a, frames) != (0, 0)]
    if "way" in said:
        color = next(w for w in said if w in COLORS)
        x, y = way(one(a for a in actors if (a.color, a.shape) == (color, named[0])), frames)
        return ("left" if x < 0 else "right") if abs(x) > abs(y) else ("up" if y < 0 else "down")
    if "many" in said:
        return NUMBERS[len(moving)]
    if "moves" in said:
        return one(moving).color if "color" in said else one(moving).shape
    comes = any(w.startswith("appear") for w in said)
    turn = [not comes, comes]  # what two frames look like between which it happens
    when = {a: t for a in actors for t in range(1, frames) if presence(a, frames)[t - 1 : t + 1] == turn}
    if "before" in said:
        a, b = (when[one(o for o in actors if o.shape == shape)] for shape in named)
        assert abs(a - b) >= 2
        return "yes" if a < b else "no"
    edge = (min if "first" in said else max)(when.values())
    shape = one(a for a, t in when.items() if t == edge).shape
    one(a for a in actors if a.shape == shape)
    return shape


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, frames=st.sampled_from([FRAMES, 11, 16]))
def test_answers_follow_from_the_actors(seed, frames):
    rng = stream("train", seed)
    drawn = clip(rng, frames)
    for played in (drawn, drawn.reversed()):
        for kind in KINDS:
            if question := ask(played.actors, kind, rng):
                assert question.answer == derive(question.text, played.actors, frames), question


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_a_seed_is_a_clip(seed):
    first, again = (clip(stream("test", seed)) for _ in range(2))
    assert np.array_equal(first.frames, again.frames)
    assert first.actors == again.actors
    other = clip(stream("train", seed))
    assert not np.array_equal(first.frames, other.frames), "splits must not meet"


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, frames=st.sampled_from([FRAMES, 16]))
def test_truth_and_pixels_agree(seed, frames):
    drawn = clip(stream("train", seed), frames)
    assert drawn.frames.shape == (frames, SIZE, SIZE, 3)
    assert drawn.frames.dtype == np.uint8
    for t in range(frames):
        shown = {index for index, actor in enumerate(drawn.actors) if actor.at(t)}
        assert set(np.unique(drawn.owner[t])) - {-1} == shown
        for index in shown:
            item = drawn.actors[index].at(t)
            rows, columns = np.nonzero(drawn.owner[t] == index)
            assert abs((columns.mean() + 0.5) * PATCH - item.x) < PATCH
            assert abs((rows.mean() + 0.5) * PATCH - item.y) < PATCH
    empty = (drawn.owner == -1).all(0).repeat(PATCH, 0).repeat(PATCH, 1)
    far = empty & (np.ptp(drawn.frames.astype(int), 0).max(-1) < 12 * NOISE)
    assert far.sum() >= 0.9 * empty.sum(), "where no shape passes, only noise changes"


def test_movers_move_at_least_two_patches_at_constant_speed():
    for sample in shapes.held_out_clips(30, kinds=("direction",)):
        for actor in sample.clip.actors:
            if actor.direction:
                at = np.array([(actor.at(t).x, actor.at(t).y) for t in range(FRAMES)])
                assert np.abs(at[-1] - at[0]).max() >= 2 * PATCH
                assert np.allclose(np.diff(at, axis=0), at[1] - at[0])


def test_a_clip_backwards_is_as_likely():
    """What decides which end of a way comes first is one fair draw: the place of a way tells nothing about it."""
    at, sign = [], []
    for seed in range(400):
        for actor in clip(stream("train", seed)).actors:
            if actor.direction in ("left", "right"):
                at.append((actor.start[0] + actor.end[0]) / 2)
                sign.append(1 if actor.direction == "right" else -1)
    assert len(at) > 100
    assert abs(np.mean(sign)) < 0.2
    assert abs(np.corrcoef(at, sign)[0, 1]) < 0.2


def test_kinds_take_turns_and_no_answer_is_given_by_the_wording():
    samples = list(shapes.held_out_clips(150))
    assert set(Counter(s.question.kind for s in samples).values()) == {150 // len(KINDS)}
    assert [s.question for s in samples[:7]] == [s.question for s in shapes.held_out_clips(7)]
    answers = {kind: Counter(s.question.answer for s in samples if s.question.kind == kind) for kind in KINDS}
    assert set(answers["direction"]) == {"left", "right", "up", "down"}
    assert max(answers["direction"].values()) < 0.45 * 30
    assert max(answers["before"].values()) < 0.7 * 30
    assert max(answers["count_moving"].values()) < 0.6 * 30
    assert len(answers["first"]) == len(SHAPES)


def test_the_views_that_destroy_time():
    sample = next(shapes.held_out_clips(1))
    mixed = shuffled(sample, 0)
    assert not np.array_equal(mixed.frames, sample.frames)
    assert sorted(f.tobytes() for f in mixed.frames) == sorted(f.tobytes() for f in sample.frames)
    assert (one_frame(sample).frames == sample.frames[0]).all()


def test_words_of_the_image_model_keep_their_ids():
    assert VIDEO_WORDS[: len(WORDS)] == WORDS
    words = tokenizer(vocabulary=VIDEO_WORDS)
    for sample in shapes.held_out_clips(50):
        for text in (sample.question.text, sample.question.answer):
            assert UNK not in words.convert_ids_to_tokens(words(text)["input_ids"])


def test_refused_arguments():
    with pytest.raises(ValueError, match="frames=4 is out of range; use 8 to 16"):
        clip(stream("train", 0), 4)
    with pytest.raises(ValueError, match=r"kinds=\['color'\] are unknown"):
        next(shapes.held_out_clips(1, kinds=("color",)))
    with pytest.raises(ValueError, match="n=0 clips"):
        next(shapes.held_out_clips(0))
    with pytest.raises(ValueError, match="kind='shape' is unknown"):
        ask((), "shape", stream("train", 0))

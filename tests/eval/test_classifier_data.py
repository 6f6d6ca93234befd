"""What the classifiers see: every label derived a second time from where the shape is, frame by frame."""

import numpy as np
import pytest
import torch

from tokenprune.eval import shapes
from tokenprune.eval.shapes import motion_data, vit_data
from tokenprune.eval.shapes.motion_data import CELLS, FRAMES, MOTIONS, SMALL, TUBELET, motion_batch
from tokenprune.eval.shapes.scenes import COLORS, GRID, PATCH, SHAPES, SIZE, TINT
from tokenprune.eval.shapes.stages import STAGE_SCENES, STAGES
from tokenprune.eval.shapes.video_train import FIRST_CLIP
from tokenprune.eval.shapes.video_train import STAGES as VIDEO_STAGES
from tokenprune.eval.shapes.vit_data import LABELS, object_batch


def told_by_place(sample):
    """The motion, from the cells on the mover alone."""
    seen = sample.owner.any((1, 2))
    if not seen.all():
        return "appear" if seen[-1] else "vanish"
    at = np.array([np.argwhere(owner).mean(0)[::-1] for owner in sample.owner])  # x, y in cells
    middle = at - (at.max(0) + at.min(0)) / 2
    turn = np.sum(middle[:-1, 0] * middle[1:, 1] - middle[:-1, 1] * middle[1:, 0])
    width, height = np.ptp(at, axis=0)
    if min(width, height) > 0.3 * max(width, height):
        return "clockwise" if turn > 0 else "anticlockwise"  # y grows downwards
    x, y = at[-1] - at[0]
    return ("left", "right")[int(x > 0)] if width > height else ("up", "down")[int(y > 0)]


def test_labels_of_clips_follow_from_where_the_shape_is_both_ways():
    samples = list(shapes.held_out_motions(120))
    assert {MOTIONS[sample.label] for sample in samples} == set(MOTIONS)
    for sample in samples:
        assert told_by_place(sample) == MOTIONS[sample.label]
        backwards = sample.reversed()
        assert told_by_place(backwards) == MOTIONS[backwards.label]
        assert np.array_equal(backwards.frames[::-1], sample.frames)
        assert backwards.label != sample.label
        assert backwards.reversed().label == sample.label


def test_the_cells_of_the_mover_are_what_changes():
    for sample in shapes.held_out_motions(30):
        changed = np.ptp(sample.frames.astype(int), axis=0).max(-1) > 40  # far above the noise
        mine = sample.owner.any(0)
        grown = np.pad(mine, 1)  # a cell that is hardly covered is nobody's
        near = np.any([grown[i : i + CELLS, j : j + CELLS] for i in range(3) for j in range(3)], axis=0)
        cells = changed.reshape(CELLS, SMALL // CELLS, CELLS, SMALL // CELLS).any((1, 3))
        assert not (cells & ~near).any()
        assert (cells & mine).any()


def test_labels_of_pictures_are_what_is_painted():
    samples = list(shapes.held_out_objects(200))
    assert len({sample.label for sample in samples}) > 50
    for sample in samples:
        color, shape = LABELS[sample.label].split()
        assert (sample.item.color, sample.item.shape) == (color, shape)
        left, top = (round(at - sample.side / 2) for at in (sample.item.x, sample.item.y))
        close = (np.abs(sample.image.astype(int) - COLORS[color]) <= TINT + 1).all(-1)
        inside = close[top : top + sample.side, left : left + sample.side]
        assert inside.mean() > 0.15, "of the square of a shape"
        patches = np.kron(sample.owner == 0, np.ones((PATCH, PATCH), bool))
        covered = np.zeros((SIZE, SIZE), bool)
        covered[top : top + sample.side, left : left + sample.side] = True
        assert (patches & close & covered).sum() > 0.6 * inside.sum()
        cells = covered.reshape(GRID, PATCH, GRID, PATCH).any((1, 3))
        assert not ((sample.owner == 0) & ~cells).any()


@pytest.mark.parametrize("batch", [object_batch, motion_batch])
def test_a_batch_has_its_number(batch):
    first, again, other = batch(8, 4), batch(8, 4), batch(16, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_half_of_a_batch_of_clips_is_the_other_half_backwards():
    frames, labels, shown = motion_batch(0, 6)
    assert torch.equal(frames[3:], frames[:3].flip(1))
    assert torch.equal(labels[3:], labels[:3] ^ 1)
    does, heads = shown.unflatten(1, (FRAMES // TUBELET, -1)).unbind(-1)
    assert torch.equal(does[3:] > 0, (does[:3] > 0).flip(1))
    assert [one[one > 0].unique().tolist() for one in does] == [[label + 1] for label in labels.tolist()]
    assert torch.equal(heads[3:] > 0, (heads[:3] > 0).flip(1))
    assert torch.equal(heads[3:], torch.where(heads[:3] > 0, (heads[:3] + 3) % 8 + 1, 0).flip(1))


def test_tokens_tell_where_the_shape_heads():
    straight = {"right": 1, "down": 3, "left": 5, "up": 7, "vanish": 0, "appear": 0}
    for sample in shapes.held_out_motions(60):
        found, motion = sample.headings, MOTIONS[sample.label]
        if motion in straight:
            assert found.tolist() == [straight[motion]] * (FRAMES // TUBELET)
        else:
            steps = np.diff(found) % 8
            assert set(steps) <= ({0, 1, 2} if motion == "clockwise" else {0, 7, 6})
            assert steps.any()


def test_the_way_is_that_of_the_cells():
    for sample in shapes.held_out_motions(40):
        for owner, place in zip(sample.owner, sample.way, strict=True):
            if not owner.any():
                assert np.isnan(place).all()
            else:
                cells = np.argwhere(owner)[:, ::-1] * (SMALL // CELLS)  # left and top of each
                assert (cells.min(0) - 1 <= place).all()
                assert (place <= cells.max(0) + SMALL // CELLS + 1).all()


def test_patches_tell_shape_and_color():
    _, labels, shown = object_batch(0, 8)
    assert shown.shape == (8, GRID * GRID, 2)
    for label, tokens in zip(labels.tolist(), shown, strict=True):
        ((shape, color),) = tokens[tokens.any(-1)].unique(dim=0).tolist()
        assert f"{list(COLORS)[color - 1]} {SHAPES[shape - 1]}" == LABELS[label]


@pytest.mark.parametrize("held_out", [shapes.held_out_objects, shapes.held_out_motions])
def test_held_out_samples_have_their_numbers(held_out):
    three, two = list(held_out(3)), list(held_out(2, first=1))
    for a, b in zip(three[1:], two, strict=True):
        name = "image" if hasattr(a, "image") else "frames"
        assert np.array_equal(getattr(a, name), getattr(b, name))
        assert a.label == b.label
    with pytest.raises(ValueError, match="use 1 or more"):
        held_out(0)


def test_no_training_sees_held_out_samples():
    train = object_batch(0, 40)[0].numpy()
    for sample in shapes.held_out_objects(40):
        assert not (sample.image == train).all((1, 2, 3)).any()
    train = motion_batch(0, 40)[0].numpy()
    for sample in shapes.held_out_motions(20):
        assert not (sample.frames == train).all((1, 2, 3, 4)).any()
    assert len(STAGES) * STAGE_SCENES <= FIRST_CLIP
    assert FIRST_CLIP + len(VIDEO_STAGES) * STAGE_SCENES <= vit_data.FIRST_OBJECT < motion_data.FIRST_MOTION

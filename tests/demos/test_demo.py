import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "demos"))

import demo
import picture

from tokenprune import UnitReport
from tokenprune.eval import shapes
from tokenprune.view import DARK, FADE


def call(*arguments):
    return CliRunner().invoke(demo.app, [str(one) for one in arguments], env={"COLUMNS": "200"})


def test_a_bad_image_is_one_sentence(broken_image, tmp_path):
    path, words = broken_image
    result = call("--image", path, "--out", tmp_path / "demo.png")
    assert result.exit_code == 2
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert str(path) in result.stderr
    assert words in result.stderr
    assert not (tmp_path / "demo.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--question", ""), "question='' is empty"),
        (("--question", "  "), "question='' is empty"),
        (("--out", "no/such/folder/demo.png"), "is in no existing folder"),
    ],
)
def test_other_bad_input_is_one_sentence(options, words):
    result = call(*options)
    assert result.exit_code == 2
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert words in result.stderr


def test_a_picture_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "BUDGETS", (0.25, 0.05))
    image, out = tmp_path / "mine.jpg", tmp_path / "demo.png"
    Image.effect_noise((200, 120), 60).convert("RGB").save(image)
    result = call("--image", image, "--question", "what color is the circle?", "--out", out, "--repeats", 1)
    assert result.exit_code == 0, result.output
    assert "what color is the circle?" in result.stdout
    for word in (*demo.POLICIES, *demo.PARTS, "25% (64/256)", "5% (13/256)"):
        assert word in result.stdout
    with Image.open(out) as written:
        assert min(written.size) > 400
        assert len(written.getcolors(2**24)) > 1000


def test_the_committed_scenes_are_answered_right():
    tasks = demo.samples()
    assert len(tasks) >= 3
    model, processor = shapes.load()
    answers = shapes.answer(model, processor, [one.image for one in tasks], [one.question for one in tasks])
    assert answers == [one.truth for one in tasks]


def unit(source):
    source = torch.tensor(source)
    indices = torch.arange(int(source.max()) + 1)
    return UnitReport(
        sample=0,
        unit=0,
        kind="image",
        total=4,
        kept=len(indices),
        grid=(1, 2, 2),
        indices=indices,
        source=source,
        slots=torch.arange(4),
    )


def test_kept_patches_stay_and_dropped_ones_fade():
    image = np.random.default_rng(0).random((4, 4, 3))
    shown, kept = picture.patches(image, unit([0, -1, -1, 1]))
    assert np.array_equal(kept, np.kron(np.eye(2), np.ones((2, 2))).astype(bool))
    assert np.array_equal(shown[kept], image[kept])
    assert np.abs(shown[~kept] - DARK).max() < 1 - FADE + 1e-9


def test_merged_patches_show_their_mean():
    image = np.random.default_rng(0).random((4, 4, 3))
    shown, kept = picture.patches(image, unit([0, 1, 0, 1]))
    assert kept.all()
    for half in (slice(0, 2), slice(2, 4)):
        np.testing.assert_allclose(shown[:, half], np.broadcast_to(image[:, half].mean((0, 1)), (4, 2, 3)))

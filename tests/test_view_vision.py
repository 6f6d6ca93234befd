"""`tokenprune view` of policies inside a vision transformer."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

import tokenprune
from tests import processors
from tokenprune import EViT, ToMe, cli
from tokenprune.eval import shapes
from tokenprune.view import DARK, FADE, Fate
from tokenprune.view_merges import merges, mosaic, on_the_way, watched

EDGES = 2  # pixels of a line on either side, where a patch has 32


@pytest.fixture(scope="module")
def sample():
    return next(shapes.held_out_objects(1))


@pytest.fixture(scope="module")
def classifier():
    return shapes.load_vit()


def ran(classifier, sample, policy):
    """What the policy did in every block, and what was left of the picture in the end."""
    model, processor = classifier
    noting, noted = watched(policy)
    with torch.inference_mode(), tokenprune.wrap(model, noting) as handle:
        model(**processor(images=[sample.picture], return_tensors="pt"))
        return noted, handle.report().towers[0]


def inside(pixels, rows, columns):
    """[rows, columns, 3]: the colour in the middle of every patch."""
    height, width = pixels.shape[:2]
    y = (np.arange(rows) * height + height // 2) // rows
    return pixels[y][:, (np.arange(columns) * width + width // 2) // columns]


def test_a_survivor_has_the_mean_colour_of_its_pixels(classifier, sample):
    _, tower = ran(classifier, sample, ToMe(r=24))
    big = sample.picture.resize((512, 512), Image.Resampling.NEAREST)
    drawn = np.asarray(mosaic(big, Fate.of([tower]))).astype(float)
    patches = np.asarray(big).reshape(16, 32, 16, 32, 3).mean((1, 3)).reshape(256, 3)
    seen, source = inside(drawn, 16, 16).reshape(256, 3), tower.source.numpy()
    for one in range(tower.kept):
        mean = patches[source == one].mean(0)
        assert np.abs(seen[source == one] - mean).max() <= 1


@pytest.mark.parametrize("color", [(90, 120, 90), (250, 250, 250), (30, 20, 40), (0, 0, 0)])
def test_lines_part_survivors_and_nothing_else_whatever_the_colour(classifier, sample, color):
    _, tower = ran(classifier, sample, ToMe(r=24))
    drawn = np.asarray(mosaic(Image.new("RGB", (512, 512), color), Fate.of([tower]))).astype(int)
    lines = np.abs(drawn - color).max(-1) > 30
    source = tower.source.numpy().reshape(16, 16)
    for grid, shown in ((source, lines), (source.T, lines.T)):
        middle = shown[16::32]  # of every row of patches
        apart = np.stack([middle[:, at - EDGES : at + EDGES].all(1) for at in range(32, 512, 32)], 1)
        assert np.array_equal(apart, grid[:, 1:] != grid[:, :-1])
        assert np.count_nonzero(middle) == 2 * EDGES * np.count_nonzero(apart)


def test_dropped_patches_are_dark(classifier, sample):
    _, tower = ran(classifier, sample, EViT(keep_rate=0.5, fuse=False))
    plain = Image.new("RGB", (512, 512), (255, 255, 255))
    drawn = inside(np.asarray(mosaic(plain, Fate.of([tower]))), 16, 16).reshape(256, 3)
    dark = np.round(255 * (FADE * DARK + 1 - FADE))
    gone = (tower.source < 0).numpy()
    assert 0 < gone.sum() < 256
    assert (drawn[gone] == dark).all()
    assert (drawn[~gone] == 255).all()


def test_patches_that_are_fused_are_dark_and_the_others_as_they_are(classifier, sample):
    _, tower = ran(classifier, sample, EViT(keep_rate=0.5))
    plain, fate = Image.new("RGB", (512, 512), (255, 255, 255)), Fate.of([tower])
    drawn = inside(np.asarray(mosaic(plain, fate, fused=True)), 16, 16).reshape(256, 3)
    alone = np.bincount(tower.source)[tower.source] == 1
    assert tower.kept - 3 <= alone.sum() < tower.kept < 256  # all but the tokens fused in three blocks
    assert (drawn[alone] == 255).all()
    assert (drawn[~alone] == np.round(255 * (FADE * DARK + 1 - FADE))).all()
    assert (inside(np.asarray(mosaic(plain, fate)), 16, 16) == 255).all()


def test_on_the_way_are_what_the_blocks_left(classifier, sample):
    noted, tower = ran(classifier, sample, ToMe(r=20))
    panels = on_the_way(noted, tower)
    assert [at for at, _ in panels] == [f"after {i} of 8 blocks" for i in (2, 4, 6)]
    assert [one.kept for _, one in panels] == [216, 176, 136]
    _, after_four = ran(classifier, sample, ToMe(r=[20] * 4))
    assert torch.equal(panels[1][1].source, after_four.source)
    assert torch.equal(panels[1][1].indices, after_four.indices)
    page = merges(np.asarray(sample.picture), [*panels, ("in the end", tower)], title="tome")
    assert page.width > 4 * 128


@pytest.fixture
def view(sample, tmp_path):
    sample.picture.save(tmp_path / "a.png")

    def invoke(*options):
        given = {"--model": shapes.VIT_CHECKPOINT, "--image": tmp_path / "a.png", "--out": tmp_path / "out"}
        left = [one for name, value in given.items() if name not in options for one in (name, value)]
        return CliRunner().invoke(cli.app, ["view", *map(str, (*left, *options))], env={"COLUMNS": "200"})

    return invoke


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (("--policy", "tome", "--keep", "0.25"), "64/256"),
        (("--policy", "tome", "--set", "r=[40, 8]", "--stage", "vision"), "208/256"),
        (("--policy", "tome", "--set", "r=(8, -1.0)"), None),
        (("--policy", "evit", "--set", "keep_rate=0.5"), "34/256"),
        (("--policy", "random-blocks", "--keep", "100"), "100/256"),
        (("--policy", "tome", "--set", "r=30", "--model", shapes.CHECKPOINT), "106/256"),
    ],
)
def test_a_picture_from_the_command_line(view, tmp_path, options, left):
    result = view(*options)
    assert result.exit_code == 0, result.output
    assert left is None or left in result.output
    with Image.open(tmp_path / "out" / "merges.png") as page:
        assert page.width > 700


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    for number, frame in enumerate(next(shapes.held_out_motions(1)).pictures):
        for copy in range(2):  # more of them than the classifier takes
            frame.save(folder / f"{number:02}-{copy}.png")
    return folder


@pytest.fixture
def view_clip(clip, tmp_path):
    def invoke(*options):
        given = {"--model": shapes.MOTION_CHECKPOINT, "--video": clip, "--out": tmp_path / "out"}
        left = [one for name, value in given.items() if name not in options for one in (name, value)]
        return CliRunner().invoke(cli.app, ["view", *map(str, (*left, *options))], env={"COLUMNS": "200"})

    return invoke


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policy", "sta", "--set", "r=16"), "video 0  kept 288/512"),  # as many frames as the model takes
        (("--policy", "tome", "--keep", "100", "--frames", "16"), "100/512"),
        (("--policy", "tome", "--set", "r=30", "--model", shapes.VIDEO_CHECKPOINT, "--frames", "3"), "3 images"),
    ],
)
def test_a_clip_from_the_command_line(view_clip, tmp_path, options, words):
    result = view_clip(*options)
    assert result.exit_code == 0, result.output
    assert words in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"merges.png", "overlay.gif", "overlay.mp4"}


def test_a_classifier_with_a_video_processor(view_clip, tmp_path):
    model = transformers.AutoModelForVideoClassification.from_pretrained(shapes.MOTION_CHECKPOINT)
    model.save_pretrained(tmp_path / "model")
    square = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    transformers.VideoMAEVideoProcessor(**square).save_pretrained(tmp_path / "model")
    result = view_clip("--model", tmp_path / "model", "--policy", "tome", "--keep", "0.5")
    assert result.exit_code == 0, result.output
    assert "256/512" in result.output


def test_the_tiles_of_a_picture_are_drawn_as_the_tower_sees_them(view, tmp_path):
    colors = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)]
    picture = Image.new("RGB", (64, 64))
    for number, color in enumerate(colors):
        picture.paste(color, (number % 2 * 32, number // 2 * 32, number % 2 * 32 + 32, number // 2 * 32 + 32))
    picture.save(tmp_path / "tiles.png")
    model = processors.save("llava_onevision", tmp_path / "model")
    result = view("--model", model, "--image", tmp_path / "tiles.png", "--policy", "tome", "--set", "r=2")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "merges.png") as page:
        drawn = np.asarray(page).astype(int)
    left = [np.argwhere(np.abs(drawn - color).max(-1) <= 4)[:, 1].max() for color in colors]
    assert left == sorted(left)  # a whole picture, then tile by tile
    assert left[0] < drawn.shape[1] / 2 < left[2]


def test_a_tower_whose_patches_lie_nobody_knows_how(view, tmp_path):
    result = view("--model", processors.save("qwen2_vl", tmp_path / "model"), "--policy", "tome", "--set", "r=4")
    assert result.exit_code == 2
    assert "where the" in result.stderr
    assert "is not known: view a policy of stage 'projector'" in result.stderr


def test_clips_and_pictures_that_a_model_does_not_take(view, view_clip, tmp_path):
    for result, words in (
        (view_clip("--policy", "tome", "--frames", "12"), "takes clips of 16: give --frames 16"),
        (view_clip("--policy", "tome", "--model", shapes.VIT_CHECKPOINT), "classifies images, not videos"),
        (view("--policy", "tome", "--model", shapes.MOTION_CHECKPOINT), "classifies videos, not images: give --video"),
    ):
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
        assert words in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--policy", "tome", "--stage", "projector"), "works at stage 'vision'"),
        (("--policy", "divprune", "--stage", "vision"), "works at stage 'projector'"),
        (("--policy", "divprune"), "has no language model"),
        (("--policy", "tome", "--set", "r=0"), "leaves every patch"),
        (("--policy", "tome", "--set", "r=8", "--keep", "9"), "both given"),
        (("--policy", "tome", "--set", "r=x"), "the field takes"),
        (("--policy", "sta", "--set", "r=4"), "needs a clip"),
        (("--policy", "tome", "--stage", "vison"), "stage='vison'"),
    ],
)
def test_errors(view, tmp_path, options, sentence):
    result = view(*options)
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert not (tmp_path / "out" / "merges.png").exists()

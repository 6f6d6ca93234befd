"""`tokenprune view` of policies inside a vision transformer."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tokenprune
from tokenprune import EViT, ToMe, cli
from tokenprune.eval import shapes
from tokenprune.view import DARK, FADE, Fate
from tokenprune.view_merges import merges, mosaic, on_the_way, watched

EDGES = 2  # pixels at the rim of a patch that a border may take


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


def test_borders_lie_between_survivors_and_only_there(classifier, sample):
    _, tower = ran(classifier, sample, ToMe(r=24))
    plain = Image.new("RGB", (512, 512), (90, 120, 90))
    drawn = np.asarray(mosaic(plain, Fate.of([tower])))
    colored = (drawn != (90, 120, 90)).any(-1)
    source = tower.source.numpy().reshape(16, 16)
    several = np.bincount(source.ravel()) > 1
    for row in range(16):
        for column in range(15):
            left, right = source[row, column], source[row, column + 1]
            line = colored[row * 32 + 16, column * 32 + 32 - EDGES : column * 32 + 32 + EDGES]
            assert line.any() == (left != right and bool(several[left] or several[right]))
    assert not inside(drawn != (90, 120, 90), 16, 16).any()


def test_dropped_patches_are_dark(classifier, sample):
    _, tower = ran(classifier, sample, EViT(keep_rate=0.5, fuse=False))
    plain = Image.new("RGB", (512, 512), (255, 255, 255))
    drawn = inside(np.asarray(mosaic(plain, Fate.of([tower]))), 16, 16).reshape(256, 3)
    dark = np.round(255 * (FADE * DARK + 1 - FADE))
    gone = (tower.source < 0).numpy()
    assert 0 < gone.sum() < 256
    assert (drawn[gone] == dark).all()
    assert (drawn[~gone] == 255).all()


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


def test_a_clip_from_the_command_line(view, tmp_path):
    clip = next(shapes.held_out_motions(1))
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, frame in enumerate(clip.pictures):
        frame.save(folder / f"{number:02}.png")
    model = ("--model", shapes.MOTION_CHECKPOINT, "--video", folder, "--image", "")
    options = [one for one in model if one != ""][:4]
    left = ["view", *map(str, options), "--out", str(tmp_path / "out"), "--policy", "sta", "--set", "r=16"]
    result = CliRunner().invoke(cli.app, [*left, "--frames", "16"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "288/512" in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"merges.png", "overlay.gif"}
    result = CliRunner().invoke(cli.app, [*left, "--frames", "12"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "add --frames 16" in result.output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--policy", "tome", "--stage", "projector"), "works at stage 'vision'"),
        (("--policy", "divprune", "--stage", "vision"), "works at stage 'projector'"),
        (("--policy", "divprune"), "takes no images"),
        (("--policy", "tome", "--set", "r=0"), "leaves every patch"),
        (("--policy", "tome", "--set", "r=8", "--keep", "9"), "both given"),
        (("--policy", "tome", "--set", "r=x"), "the field takes"),
        (("--policy", "sta", "--set", "r=4"), "needs a clip"),
        (("--policy", "tome", "--model", shapes.MOTION_CHECKPOINT), "neither a classifier of images"),
    ],
)
def test_errors(view, tmp_path, options, sentence):
    result = view(*options)
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert not (tmp_path / "out" / "merges.png").exists()

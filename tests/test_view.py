import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests import clips, processors
from tokenprune import UnitReport, cli, read_video, view
from tokenprune.errors import InputError
from tokenprune.view import DARK, FADE, PALETTE, TINT, Fate, clock, overlay, painted, save_overlay, sheet
from tokenprune.view_cli import _seen


def unit(source, indices, grid):
    return UnitReport(
        sample=0,
        unit=0,
        kind="video",
        total=len(source),
        kept=len(indices),
        grid=grid,
        indices=torch.tensor(indices),
        source=torch.tensor(source),
        slots=torch.arange(len(source)),
    )


# Two steps of 2 x 2. Survivor 0 stands at 0 and carries 4, the same place one step later; 1 and 2 carry nothing.
MERGED = unit([0, -1, 1, -1, 0, -1, -1, 2], [0, 2, 7], (2, 2, 2))


@pytest.fixture
def frames():
    return list(np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8))


def test_fate_of_a_video():
    fate = Fate.of([MERGED])
    assert fate.source.tolist() == [[[0, -1], [1, -1]], [[0, -1], [-1, 2]]]
    assert fate.stands.tolist() == [[[True, False], [True, False]], [[False, False], [False, True]]]
    assert fate.color.tolist() == [0, -1, -1]
    assert fate.merged
    assert [fate.counts(step) for step in (0, 1)] == [(2, 0), (1, 1)]


def test_fate_of_frames_that_are_units_of_their_own():
    fate = Fate.of([unit([0, 1, -1, 1], [0, 1], (1, 2, 2)), unit([-1, 0, 0, 1], [2, 3], (1, 2, 2))])
    assert fate.source.tolist() == [[[0, 1], [-1, 1]], [[-1, 2], [2, 3]]]
    assert fate.color.tolist() == [-1, 0, 1, -1]
    assert not Fate.of([unit([0, -1], [0], (1, 1, 2))]).merged


def test_survivors_that_carry_others_take_the_colors_in_turn():
    n = len(PALETTE) + 2
    fate = Fate.of([unit([i // 2 for i in range(2 * n)], list(range(0, 2 * n, 2)), (1, 2, n))])
    assert fate.color.tolist() == [*range(len(PALETTE)), 0, 1]


@pytest.mark.parametrize(
    "units",
    [
        [unit([0, -1], [0], None)],
        [unit([0, -1], [0], (1, 1, 2)), unit([0, -1], [0], (1, 2, 1))],
        [unit([0, -1, -1], [0], (1, 1, 2))],
    ],
)
def test_tokens_without_a_grid_get_a_sentence(units):
    with pytest.raises(InputError, match="view pictures that are encoded whole, or videos"):
        Fate.of(units)


def test_kept_patches_are_clear_and_dropped_ones_dark(frames):
    drawn = np.asarray(painted(Image.fromarray(frames[0]), Fate.of([unit([0, -1, -1, 1], [0, 3], (1, 2, 2))])))
    for rows, columns in ((slice(0, 20), slice(0, 30)), (slice(20, 40), slice(30, 60))):
        assert np.array_equal(drawn[rows, columns], frames[0][rows, columns])
    dark = 255 * FADE * DARK + (1 - FADE) * frames[0][:20, 30:]
    assert np.abs(drawn[:20, 30:] - dark).max() <= 0.5 + 1e-9


def test_merged_patches_have_the_color_of_their_token_and_a_ring_where_it_stands(frames):
    fate = Fate.of([MERGED])
    first, second = (np.asarray(painted(Image.fromarray(frames[i]), fate, i)).astype(float) for i in (0, 1))
    tinted = (1 - TINT) * frames[1] + TINT * PALETTE[0]
    assert np.abs(second[1:19, 1:29] - tinted[1:19, 1:29]).max() <= 0.5 + 1e-9
    ring = (first[:20, :30] == PALETTE[0]).all(-1)
    assert ring.any()
    assert not ring[5:15, 5:25].any()
    assert not (second == PALETTE[0]).all(-1).any()
    assert np.array_equal(first[21:, :29], frames[0][21:, :29])  # kept alone


def test_the_same_fate_is_painted_the_same(frames):
    picture, fate = Image.fromarray(frames[0]), Fate.of([MERGED])
    assert np.array_equal(np.asarray(painted(picture, fate)), np.asarray(painted(picture, Fate.of([MERGED]))))


def test_patches_smaller_than_pixels_and_rings():
    source = list(range(64 * 64 // 2)) * 2
    fate = Fate.of([unit(source, list(range(64 * 64 // 2)), (1, 64, 64))])
    assert painted(Image.new("RGB", (40, 30)), fate).size == (40, 30)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 16, 32])
@pytest.mark.parametrize("shape", [(36, 64), (64, 36), (20, 20)])
def test_a_sheet_has_a_cell_per_step_of_the_right_shape(count, shape):
    fate = Fate(np.zeros((count, 1, 1), int), np.ones((count, 1, 1), bool), np.array([-1]))  # all kept
    colors = np.random.default_rng(0).integers(80, 200, (count, 3), dtype=np.uint8)
    drawn = np.asarray(
        sheet([np.broadcast_to(one, (*shape, 3)) for one in colors], fate, title="t", times=range(count))
    )
    for color in colors[[0, -1]]:
        y, x = (drawn == color).all(-1).nonzero()
        height, width = np.ptp(y) + 1, np.ptp(x) + 1
        assert width / height == pytest.approx(shape[1] / shape[0], rel=0.02)
        assert 180 <= width <= 560
        assert (drawn[y.min() : y.max() + 1, x.min() : x.max() + 1] == color).all()
    assert drawn.shape[1] <= 1600


def test_steps_of_two_frames_show_the_first(frames):
    four = [frames[0], frames[0], frames[1], frames[0]]
    fate = Fate.of([unit([0, 1], [0, 1], (2, 1, 1))])
    assert np.array_equal(
        np.asarray(overlay(four, fate, times=[0, 1, 2, 3])[1])[:300],
        np.asarray(overlay([frames[0], frames[1]], fate, times=[0, 2])[1])[:300],
    )
    three = overlay(four[:3], fate, times=[0, 1, 2])  # an odd one is a step of its own
    assert len(three) == 2
    with pytest.raises(InputError, match="4 frames became 3 steps"):
        sheet(four, Fate.of([unit([0, 1, 2], [0, 1, 2], (3, 1, 1))]), title="")


def test_a_title_is_wrapped_and_the_legend_tells_of_merges_if_there_are_any(frames):
    kept = Fate.of([unit([0, 1], [0, 1], (2, 1, 1))])
    short, long = (sheet(frames, kept, title=title) for title in ("title", "many words " * 40))
    assert long.size[1] > short.size[1] + 50
    inks = [np.asarray(sheet(frames, fate, title="title"))[:100].reshape(-1, 3) for fate in (kept, Fate.of([MERGED]))]
    assert [bool((ink == PALETTE[0]).all(-1).any()) for ink in inks] == [False, True]


def test_overlays_are_written_as_gif_and_mp4(tmp_path, frames):
    fate = Fate.of([unit([0, -1, -1, 1], [0, 3], (2, 1, 2))])
    pages = overlay([frame[:39, :57] for frame in frames], fate, times=[0.0, 0.4])
    assert {page.size for page in pages} == {(480, 328 + view.STRIP)}
    gif, mp4 = save_overlay(pages, tmp_path, [0.0, 0.4])
    assert (gif.name, mp4.name) == ("overlay.gif", "overlay.mp4")
    found = read_video(gif)
    assert (found.times, found.duration) == ((0.0, 0.4), 0.8)
    assert found.frames.shape[1:] == (328 + view.STRIP, 480, 3)
    assert read_video(mp4).duration == pytest.approx(0.8)


def test_long_and_short_steps_are_shown_for_a_bounded_time(tmp_path, frames):
    pages = [Image.fromarray(frame) for frame in (*frames, *frames)]
    save_overlay(pages, tmp_path, [0, 60, 60.001, 60.401])
    assert read_video(tmp_path / "overlay.gif").times == (0.0, 1.0, 1.08, 1.48)


def test_without_pyav_there_is_a_gif_alone(tmp_path, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert save_overlay([Image.fromarray(frame) for frame in frames], tmp_path, [0, 1]) == [tmp_path / "overlay.gif"]
    assert not (tmp_path / "overlay.mp4").exists()


def test_clock():
    assert [clock(seconds) for seconds in (0, 3.24, 59.94, 59.97, 63.2, 3599.9, 3663)] == [
        "0.0 s",
        "3.2 s",
        "59.9 s",
        "1:00.0",
        "1:03.2",
        "59:59.9",
        "1:01:03",
    ]


class Cropping:
    do_center_crop = True

    def __init__(self, size, crop):
        self.size, self.crop_size = size, {"height": crop, "width": crop}


@pytest.mark.parametrize(
    ("size", "crop", "seen"),
    [
        ({"shortest_edge": 20}, 20, (slice(0, 40), slice(10, 50))),
        ({"shortest_edge": 40}, 20, (slice(10, 30), slice(20, 40))),
        ({"height": 40, "width": 40}, 20, (slice(10, 30), slice(15, 45))),
        ({"shortest_edge": 20}, 100, (slice(0, 40), slice(0, 60))),
    ],
)
def test_what_a_processor_cuts_off_is_not_drawn(frames, size, crop, seen):
    cut = _seen(Cropping(size, crop), frames)
    assert np.array_equal(cut[1], frames[1][seen])


def test_what_no_processor_cuts_off_is_drawn(frames):
    assert np.array_equal(_seen(object(), frames)[1], frames[1])


@pytest.fixture(scope="session")
def video_checkpoint(tmp_path_factory):
    """Folder of a random model that takes videos and images, and its processor."""
    return processors.save("llava_onevision", tmp_path_factory.mktemp("video-model"))


@pytest.fixture
def call(tmp_path, video_checkpoint):
    """`tokenprune view` on a working model, which later options override."""

    def invoke(*options):
        left = [] if "--model" in options else ["--model", video_checkpoint]
        left += [] if "--out" in options else ["--out", tmp_path / "out"]
        return CliRunner().invoke(cli.app, ["view", *map(str, (*left, *options))], env={"COLUMNS": "200"})

    return invoke


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return clips.write(tmp_path_factory.mktemp("view") / "clip.mp4")


@pytest.mark.parametrize(
    "options", [("--policy", "pool"), ("--policy", "fastv", "--set", "layer=2"), ("--per", "frame")]
)
def test_view_draws_a_video(call, clip, tmp_path, options):
    result = call("--video", clip, "--frames", 6, *options)
    assert result.exit_code == 0, result.output
    assert "kept 6/24" in result.stdout or result.stdout.count("kept 1/4") == 6
    assert f"wrote {tmp_path / 'out' / 'sheet.png'}, " in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["overlay.gif", "overlay.mp4", "sheet.png"]
    assert len(read_video(tmp_path / "out" / "overlay.gif")) == 6
    with Image.open(tmp_path / "out" / "sheet.png") as drawn:
        assert drawn.width > 1000


def test_view_draws_a_video_whose_frames_are_written_as_images(call, clip, tmp_path):
    model = processors.save("internvl", tmp_path / "model")
    result = call("--model", model, "--video", clip, "--frames", 3)
    assert result.exit_code == 0, result.output
    assert "video 0  kept 12/48 (25.0 %)  grid 3x4x4" in result.stdout


def test_view_draws_a_picture(call, tiny_checkpoint, tmp_path):
    Image.new("RGB", (90, 60), "navy").save(tmp_path / "a.png")
    result = call("--model", tiny_checkpoint, "--image", tmp_path / "a.png", "--policy", "uniform")
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sheet.png"]


def test_view_says_what_it_cannot_draw(call, clip, tmp_path, video_checkpoint):
    Image.new("RGB", (90, 30), "navy").save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    for options, words in (
        ((), "image and video are both missing"),
        (("--video", clip, "--image", tmp_path / "a.png"), "image and video are both given"),
        (("--video", clip, "--out", tmp_path / "file"), "is a file: give the path of a folder"),
        (("--video", tmp_path / "none.mp4"), "is no file"),
        (("--video", clip, "--policy", "pol"), "did you mean 'pool'?"),
        (("--image", tmp_path / "a.png", "--policy", "uniform"), "view pictures that are encoded whole"),
    ):
        result = call(*options)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
        assert words in result.stderr
    assert not (tmp_path / "out").exists()

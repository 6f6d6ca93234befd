import re
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import clips
from tests.clips import FRAMES, HEIGHT, RATE, WIDTH, numbers
from tokenprune import Video, read_video, video
from tokenprune.errors import InputError, InvalidArgumentError

both = pytest.mark.parametrize("reader", video.READERS)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Six seconds, two key frames."""
    return clips.write(tmp_path_factory.mktemp("clips") / "clip.mp4")


def refused(path, error=InputError, **how):
    with pytest.raises(error) as caught:
        read_video(path, **how)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert text[0] != "'"
    return text


@both
def test_a_number_of_frames(clip, reader):
    found = read_video(clip, frames=5, reader=reader)
    assert isinstance(found, Video)
    assert found.indices == (0, 15, 30, 44, 59)
    assert numbers(found.frames) == [0, 15, 30, 44, 59]
    assert found.times == (0.0, 1.5, 3.0, 4.4, 5.9)
    assert (found.frames.shape, found.frames.dtype) == ((5, HEIGHT, WIDTH, 3), np.uint8)
    assert (found.rate, found.duration, found.total, found.span) == (RATE, 6.0, FRAMES, (0.0, 6.0))
    assert (len(found), found.path) == (5, str(clip))
    assert "frames=" not in repr(found)


@both
def test_every_frame_alone_is_the_one_that_is_read_in_a_row(clip, reader):
    whole = read_video(clip, frames=FRAMES, reader=reader)
    assert whole.indices == tuple(range(FRAMES))
    assert numbers(whole.frames) == list(range(FRAMES))
    for i in (0, 29, 30, 31, 59):
        alone = read_video(clip, frames=1, start=i / RATE, end=(i + 1) / RATE, reader=reader)
        assert alone.indices == (i,)
        assert np.array_equal(alone.frames[0], whole.frames[i])


def test_how_many_there_are_by_default(clip):
    assert len(read_video(clip)) == 32
    assert read_video(clip, end=0.5).indices == (0, 1, 2, 3, 4)
    assert len(read_video(clip, frames=1000)) == FRAMES
    assert read_video(clip, frames=1).indices == (30,)


@both
def test_frames_at_a_rate(clip, reader):
    assert read_video(clip, fps=1, reader=reader).times == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert read_video(clip, fps=2, start=1, end=3, reader=reader).times == (1.0, 1.5, 2.0, 2.5)
    assert read_video(clip, fps=3, end=1, reader=reader).times == (0.0, 0.3, 0.6)
    assert read_video(clip, fps=0.01, reader=reader).times == (0.0,)
    assert read_video(clip, fps=1000, reader=reader).indices == tuple(range(FRAMES))


@pytest.fixture(scope="session")
def uneven(tmp_path_factory):
    """Ten frames a second for three seconds, then one every two seconds."""
    ms = [100 * i if i < 30 else 3000 + 2000 * (i - 30) for i in range(40)]
    path = tmp_path_factory.mktemp("uneven") / "uneven.mp4"
    return clips.write(path, shown=range(40), ms=ms, bf="0")


@both
def test_time_stamps_of_a_variable_rate(uneven, reader):
    found = read_video(uneven, fps=0.5, reader=reader)
    assert found.times == (0.0, 2.0, *(3.0 + 2 * i for i in range(9)))
    assert numbers(found.frames) == list(found.indices) == [0, 20, *range(30, 39)]
    assert read_video(uneven, start=7.5, end=8.5, reader=reader).times == (7.0,)  # what is shown then
    assert read_video(uneven, start=7.5, end=9.5, reader=reader).times == (7.0, 9.0)


@given(
    gaps=st.lists(st.integers(1, 3000), min_size=1, max_size=50),
    frames=st.none() | st.integers(1, 60),
    fps=st.floats(0.01, 2000),
    span=st.tuples(st.floats(0, 0.98), st.floats(0.01, 1)),
)
def test_chosen_frames_ascend_are_distinct_and_shown_in_the_span(gaps, frames, fps, span):
    ends = np.cumsum(gaps) / 1000
    times, duration = np.concatenate([[0], ends[:-1]]), float(ends[-1])
    start = duration * min(span)
    end = max(duration * max(span), start + 0.002)
    chosen = video._chosen(times, frames, None if frames else fps, start, end)
    assert chosen == sorted(set(chosen))
    assert all(isinstance(one, int) for one in chosen)
    shown = [i for i in range(len(times)) if times[i] < end - 1e-3 and ends[i] > start + 1e-3]
    if frames and shown:
        assert len(chosen) == min(frames, len(shown))
        assert set(chosen) <= set(shown)
    near = [i for i in range(len(times)) if times[i] < end + 0.002 and ends[i] > start - 0.002]
    assert chosen
    assert set(chosen) <= set(near)


def test_times_rounded_to_the_millisecond_cost_no_frame():
    times = np.round(np.arange(3000) * 1001 / 30000, 3)
    assert video._chosen(times, None, 10000 / 1001, 0.0, 100.1) == list(range(0, 3000, 3))


def test_metadata_tells_processors_the_times(clip, uneven):
    even = read_video(clip, frames=7)
    assert even.metadata().timestamps == pytest.approx(even.times)
    assert (even.metadata().fps, even.metadata().frames_indices) == (RATE, list(even.indices))
    assert (even.metadata().height, even.metadata().width) == (HEIGHT, WIDTH)
    assert (even.metadata().total_num_frames, even.metadata().duration) == (FRAMES, 6.0)
    odd = read_video(uneven, frames=9)
    assert odd.metadata().timestamps == pytest.approx(odd.times)


def test_metadata_tells_the_rate_of_the_frames_within_the_span(clip, uneven):
    assert read_video(clip, fps=2).metadata().sampled_fps == pytest.approx(2)
    assert read_video(clip, fps=5, start=2, end=4).metadata().sampled_fps == pytest.approx(5)
    assert read_video(uneven, fps=0.5, start=3, end=21).metadata().sampled_fps == pytest.approx(0.5, rel=0.01)


@both
def test_sizes(clip, reader):
    shape = lambda size: read_video(clip, frames=2, size=size, reader=reader).frames.shape[1:3]  # noqa: E731
    assert shape(None) == shape(64) == shape(1000) == (48, 64)
    assert shape(32) == (24, 32)
    assert shape((10, 90)) == (10, 90)
    assert shape(1) == (1, 1)
    assert numbers(read_video(clip, frames=3, size=16, reader=reader).frames) == [0, 30, 59]


@both
def test_a_phone_held_upright(tmp_path, reader):
    lying = clips.write(tmp_path / "lying.mp4", shown=range(3), size=(160, 120))
    found = read_video(clips.turned(tmp_path / "turned.mp4", lying, 120), frames=3, reader=reader)
    assert found.frames.shape == (3, 160, 120, 3)
    assert found.frames[0, :8, -8:].min() > 200  # the mark went from the left to the right
    assert found.frames[0, :8, :8].max() < 50


def test_a_narrow_video_that_decord_gets_wrong_when_it_turns_it(clip, tmp_path):
    path = clips.turned(tmp_path / "turned.mp4", clip, HEIGHT)
    assert "gets the width of a frame wrong" in refused(path)
    assert read_video(path, frames=3, reader="pyav").frames.shape == (3, WIDTH, HEIGHT, 3)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("clip.ts", "libx264"), ("clip.mpg", "mpeg2video"), ("clip.avi", "mpeg4"), ("clip.mkv", "libx264")],
)
def test_pyav_finds_frames_of_any_container(tmp_path, name, codec):
    path = clips.write(tmp_path / name, codec=codec, rate=25)
    whole = read_video(path, frames=FRAMES, reader="pyav")
    found = read_video(path, frames=7, reader="pyav")
    assert np.array_equal(found.frames, whole.frames[list(found.indices)])
    assert np.abs(np.subtract(numbers(whole.frames), range(FRAMES))).max() <= 3  # these codecs blur


@pytest.mark.parametrize("still", [0, 50])
def test_open_groups_of_pictures_are_refused_by_decord_and_read_by_pyav(tmp_path, still):
    """decord is off by some frames behind each jump there, even if nothing moves around the first key frame."""
    shown = [max(0, i - still) % 60 for i in range(90)]
    path = clips.open_gops(tmp_path / "open.mp4", shown)
    message = refused(path, frames=5)
    assert "after a jump" in message
    assert "PyAV opens it: give reader='pyav'" in message
    assert numbers(read_video(path, frames=5, reader="pyav").frames) == [shown[i] for i in (0, 22, 44, 67, 89)]
    assert numbers(read_video(path, frames=5, end=2).frames) == [shown[i] for i in (0, 5, 10, 14, 19)]  # no jump


def test_decord_says_what_pyav_can_open(tmp_path, monkeypatch):
    monkeypatch.setenv("SVT_LOG", "0")
    path = clips.write(tmp_path / "av1.mp4", codec="libsvtav1", shown=range(0, 60, 6))
    message = refused(path)
    assert "has no decoder for the codec" in message
    assert "PyAV opens it: give reader='pyav'" in message
    assert len(read_video(path, reader="pyav")) == 10


def test_frames_that_decord_makes_up_are_refused(tmp_path):
    path = clips.write(tmp_path / "clip.ts")
    assert "PyAV opens it: give reader='pyav'" in refused(path, frames=5)


@pytest.fixture(scope="session")
def broken(clip, tmp_path_factory):
    """name -> path of what is no usable video."""
    folder = tmp_path_factory.mktemp("broken")
    whole = clips.write(folder / "whole.mp4", movflags="faststart").read_bytes()
    damaged = bytearray(whole)
    middle = len(whole) // 3
    damaged[middle:] = np.random.default_rng(0).integers(0, 256, len(whole) - middle, dtype=np.uint8).tobytes()
    files = {
        "empty": b"",
        "text": b"no video\n" * 100,
        "cut": clip.read_bytes()[: clip.stat().st_size // 2],
        "cut_behind_its_index": whole[: len(whole) // 2],
        "damaged": bytes(damaged),
    }
    paths = {name: folder / f"{name}.mp4" for name in (*files, "missing", "sound", "frameless")}
    for name, data in files.items():
        paths[name].write_bytes(data)
    clips.sound(paths["sound"])
    clips.write(paths["frameless"], shown=[])
    Image.new("RGB", (8, 8)).save(folder / "still.png")
    (folder / "bare").mkdir()
    (folder / "bare" / "notes.txt").write_text("")
    return {**paths, "still": folder / "still.png", "bare": folder / "bare"}


@both
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "is no file"),
        ("empty", "is empty"),
        ("text", "give an intact video"),
        ("cut", "give an intact video"),
        ("cut_behind_its_index", "of its 60 frames are there"),
        ("damaged", "cannot be read by"),
        ("sound", "has no video stream"),
        ("frameless", "cannot be read by"),
        ("still", "is a still picture (PNG)"),
        ("bare", "is a folder without pictures"),
    ],
)
def test_what_is_no_video_gets_a_sentence(broken, name, words, reader):
    message = refused(broken[name], reader=reader)
    assert message.startswith(f"video={str(broken[name])!r} ")
    assert words in message
    assert message.count("cannot be read by") <= 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"frames": 0}, "frames=0 is no number of frames"),
        ({"frames": -3}, "frames=-3"),
        ({"frames": 2.5}, "frames=2.5"),
        ({"frames": True}, "frames=True"),
        ({"frames": 4, "fps": 2.0}, "frames=4 and fps=2.0 are two ways"),
        ({"fps": 0}, "fps=0 is no number above 0"),
        ({"fps": -1.0}, "fps=-1.0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"fps": "2"}, "fps='2'"),
        ({"start": -1}, "start=-1 is no time"),
        ({"start": float("nan")}, "start=nan"),
        ({"end": 0}, "end=0 is no number above 0"),
        ({"start": 2, "end": 2}, "end=2 is not behind start=2"),
        ({"size": 0}, "size=0 is no size"),
        ({"size": (10, 0)}, "size=(10, 0)"),
        ({"size": (1, 2, 3)}, "size=(1, 2, 3)"),
        ({"size": 10.5}, "size=10.5"),
        ({"reader": "decrd"}, "did you mean 'decord'?"),
    ],
)
def test_arguments_that_make_no_sense(clip, how, words):
    assert words in refused(clip, InvalidArgumentError, **how)


def test_a_span_behind_the_end(clip):
    assert "start=6.0 is behind the end of video=" in refused(clip, start=6.0)
    assert read_video(clip, start=5.95).indices == (59,)
    assert read_video(clip, start=5.0, end=1e9).indices == tuple(range(50, 60))


def test_more_than_fits_is_refused_before_it_is_read(clip, monkeypatch):
    monkeypatch.setattr(video, "LARGEST", 3 * HEIGHT * WIDTH * 4)
    assert len(read_video(clip, frames=4)) == 4
    assert f"gives 5 frames of {WIDTH}x{HEIGHT}" in refused(clip, frames=5)


def test_packages_that_are_missing_are_named(clip, broken, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    message = refused(broken["text"])
    assert "PyAV reads more: pip install tokenprune-vlm[video]" in message
    assert "pip install tokenprune-vlm[video]" in refused(clip, reader="pyav")
    monkeypatch.setitem(sys.modules, "decord", None)
    message = refused(clip)
    assert "reader='decord' needs the package decord" in message
    assert "pip install tokenprune-vlm[video], or give reader='pyav'" in message


@pytest.fixture
def folder(tmp_path):
    for i in (10, 2, 1):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".frame3.png").write_text("")
    return tmp_path


def test_a_folder_of_pictures(folder):
    found = read_video(folder)
    assert found.frames[:, 0, 0, 0].tolist() == [1, 2, 10]
    assert (found.times, found.duration, found.rate) == ((0.0, 1.0, 2.0), 3.0, 1.0)
    assert read_video(folder, fps=0.5).indices == (0, 2)


def test_a_folder_with_a_broken_picture_or_several_sizes(folder):
    Image.new("RGB", (8, 8)).save(folder / "frame11.png")
    message = refused(folder)
    assert "frames of different sizes (8x6, then 8x8 at 3 s): give size=(height, width)" in message
    assert read_video(folder, size=(4, 4)).frames.shape == (4, 4, 4, 3)
    (folder / "frame11.png").write_bytes(b"no picture")
    assert "frame11.png" in refused(folder)


def gif(path, colors, durations, **how):
    frames = [Image.new("RGB", (8, 6), color) for color in colors]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **how)
    return path


def test_a_gif_keeps_its_times(tmp_path):
    path = gif(tmp_path / "a.gif", ["red", "lime", "blue"], [100, 500, 1000])
    found = read_video(path)
    assert found.frames[:, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert (found.times, found.duration) == ((0.0, 0.1, 0.6), 1.6)
    assert read_video(path, fps=2).indices == (0, 1, 2)
    assert read_video(path, start=0.2, end=0.3).indices == (1,)
    assert found.metadata().timestamps == pytest.approx(found.times)


def test_a_gif_of_changes_is_composed(tmp_path):
    first, second = Image.new("RGBA", (8, 6), "red"), Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    second.paste((0, 0, 255, 255), (0, 0, 4, 6))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], duration=100, disposal=1)
    found = read_video(tmp_path / "a.gif")
    assert found.frames[1, 0, [0, 7]].tolist() == [[0, 0, 255], [255, 0, 0]]
    second.save(tmp_path / "b.gif")
    assert read_video(tmp_path / "b.gif").frames[0, 0, [0, 7]].tolist() == [[0, 0, 255], [255, 255, 255]]


def test_a_gif_that_is_cut_short_gets_a_sentence(tmp_path):
    frames = [Image.effect_noise((64, 64), 50) for _ in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    data, whole = (tmp_path / "a.gif").read_bytes(), read_video(tmp_path / "a.gif")
    for length in [*range(1, 900, 7), *range(len(data) // 2, len(data) // 2 + 600)]:
        (tmp_path / "a.gif").write_bytes(data[:length])
        with suppress(InputError):
            left = read_video(tmp_path / "a.gif")  # cut between two frames
            assert np.array_equal(left.frames, whole.frames[: len(left)])
    (tmp_path / "a.gif").write_bytes(data[: 2 * len(data) // 5])
    assert "cannot be decoded" in refused(tmp_path / "a.gif")


MEASURE = """
import os, re, sys
import tokenprune
assert not {"decord", "av"} & set(sys.modules)
import decord, av
for reader in ("decord", "pyav"):
    pages = int(open("/proc/self/statm").read().split()[1])
    video = tokenprune.read_video(sys.argv[1], frames=160, size=256, reader=reader)
    # of this program alone: ru_maxrss begins at what the process held that started it
    peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
    print(reader, (peak - pages * os.sysconf("SC_PAGE_SIZE")) >> 20, video.frames.nbytes >> 20)
"""


def test_frames_of_full_size_are_not_held(tmp_path):
    """160 frames of 1080p are 949 MiB; decord decodes some ahead. And importing tokenprune imports no reader."""
    shown = [i % 60 for i in range(160)]
    path = clips.write(tmp_path / "large.mp4", shown=shown, size=(1920, 1080), preset="ultrafast")
    printed = subprocess.run([sys.executable, "-c", MEASURE, path], check=True, capture_output=True, text=True).stdout
    for line in printed.splitlines():
        extra, answered = map(int, re.findall(r" (\d+)", line))
        assert answered < 20
        assert extra < 600, line

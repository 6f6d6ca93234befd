"""What gives the frames of a video one by one: folders, animated pictures, and video files through decord or PyAV."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
STILL = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's formats; it takes some videos for pictures, too
DAMAGE = (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error)  # what Pillow raises of cut files
THREADS = 4  # of PyAV; each of them may hold a frame
LEAST = 128  # pixels: decord is not asked for smaller frames, whose width it gets wrong
JUMPS = 4  # key frames that it tries, from the nearest on
SLACK = 1e-3  # seconds: times are kept to the millisecond
MISSING = "needs the package {package}, which is not installed: pip install tokenprune-vlm[video]"


Fit = Callable[[int, int], tuple[int, int]]  # (width, height) of a frame -> what they shall be


class Reader(Protocol):
    """Frames that can be had one by one.

    Attributes:
        times: [N] seconds of all frames, ascending, the first 0.
        duration: seconds.
        rate: frames per second, on average.
    """

    times: np.ndarray
    duration: float
    rate: float

    def pictures(self, indices: list[int], fit: Fit) -> Iterator[Image]:
        """Those frames, RGB, resized. The indices ascend."""

    def close(self) -> None: ...


def open_reader(path: Path, reader: str) -> Reader:
    """The frames of whatever is there.

    Raises:
        InputError: nothing is, or nothing that can be read.
    """
    from PIL import Image

    name = f"video={str(path)!r}"
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise InputError(f"{name} is no file: give the path of a video, a folder of pictures or a GIF.")
    if not path.stat().st_size:
        raise InputError(f"{name} is empty: give an intact file.")
    try:
        with Image.open(path, formats=STILL) as image:
            kind, animated = image.format, getattr(image, "is_animated", False)
    except (*DAMAGE, Image.DecompressionBombError):
        return Decord(path) if reader == "decord" else PyAV(path)
    if not animated and kind != "GIF":
        raise InputError(f"{name} is a still picture ({kind}): give it as an image, or a folder of pictures.")
    return Animation(path)


def open_image(path: Path) -> Image:
    """The picture in a file, decoded, RGB.

    Raises:
        InputError: no such file, no image, or only the beginning of one.
    """
    from PIL import Image

    if not path.is_file():
        raise InputError(f"image={str(path)!r} is no file: give the path of an image.")
    with _pillow(f"image={str(path)!r}"), Image.open(path) as image:
        return image.convert("RGB")


class Folder:
    """One picture a second."""

    rate = 1.0

    def __init__(self, path: Path):
        found = [one for one in path.iterdir() if one.suffix.lower() in PICTURES and not one.name.startswith(".")]
        if not found:
            raise InputError(f"video={str(path)!r} is a folder without pictures: give one with PNG or JPEG files.")
        self.files = sorted(found, key=_natural)
        self.times, self.duration = np.arange(len(found), dtype=float), float(len(found))

    def pictures(self, indices: list[int], fit: Fit) -> Iterator[Image]:
        return (_resized(open_image(self.files[i]), fit) for i in indices)

    def close(self) -> None:
        pass


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts frame2 before frame10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


class Animation:
    """A GIF or its like. Pillow composes frames that are given as changes; transparent places become white."""

    def __init__(self, path: Path):
        from PIL import Image

        self.name, durations = f"video={str(path)!r}", []
        with _pillow(self.name):
            self.image = Image.open(path, formats=STILL)
            for i in range(getattr(self.image, "n_frames", 1)):
                self.image.seek(i)
                ms = self.image.info.get("duration", 0)
                durations.append(ms / 1000 if ms > 10 else 0.1)  # as browsers do
        ends = np.round(np.cumsum(durations), 3)
        self.times, self.duration = np.concatenate([[0.0], ends[:-1]]), float(ends[-1])
        self.rate = len(durations) / self.duration

    def pictures(self, indices: list[int], fit: Fit) -> Iterator[Image]:
        from PIL import Image

        for i in indices:
            with _pillow(self.name):
                self.image.seek(i)
                frame = self.image.convert("RGBA")
            yield _resized(Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB"), fit)

    def close(self) -> None:
        self.image.close()


def _resized(picture: Image, fit: Fit) -> Image:
    from PIL import Image

    size = fit(*picture.size)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


@contextmanager
def _pillow(name: str):
    """Errors of Pillow as sentences."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read: give a PNG or JPEG.") from None
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be decoded ({error}): give an intact file.") from None


class Decord:
    """A video file through decord 0.6.

    Of some files it answers wrong frames without a word. Three things give them away: time stamps that are none, frames
    that it counts as made up (`fault_tol`), and other frames after a jump to a key frame than when read in a row.
    It decodes ahead for as long as it is let, so that it is asked for frames of the size that is wanted, not of their
    own, but for the first, which tells their shape.
    """

    def __init__(self, path: Path):
        try:
            import decord
        except (ImportError, OSError):
            raise InputError(f"reader='decord' {MISSING.format(package='decord')}, or give reader='pyav'.") from None
        decord.logging.set_level(decord.logging.QUIET)
        self.path, self.decord = path, decord
        with self._sentences():
            self.reader = self._open()
            spans = self.reader.get_frame_timestamp(np.arange(len(self.reader))).astype(float)
            self.rate = float(self.reader.get_avg_fps())
            self.keys = self.reader.get_key_indices()
        steps = np.diff(spans[:, 0])
        if not (np.isfinite(spans).all() and (np.abs(spans) < 1e9).all() and (steps >= 0).all() and self.rate > 0):
            raise self._refusal("its time stamps make no sense")
        self.times, self.duration = _from_zero(spans[:, 0], spans[-1, 1], self.rate)

    def _open(self, **size: int) -> Any:
        cpu = self.decord.cpu(0)
        return self.decord.VideoReader(str(self.path), ctx=cpu, num_threads=1, fault_tol=1e-9, **size)

    def pictures(self, indices: list[int], fit: Fit) -> Iterator[Image]:
        from PIL import Image

        with self._sentences(indices[-1]):
            height, width, _ = self.reader[0].shape
            wanted = fit(width, height)
            if wanted != (width, height):
                self.reader = None  # one at a time
                self.reader = self._open(width=max(wanted[0], LEAST), height=max(wanted[1], LEAST))
            trusted = self._seeks_right(indices[-1])
        if not trusted:
            raise self._refusal("it finds other frames after a jump than when it reads in a row", indices[-1])
        for i in indices:
            with self._sentences(i):
                frame = _array(self.reader[i])
            if frame.shape[2] != 3:  # a narrow one that is to be turned
                raise self._refusal("it gets the width of a frame wrong", i)
            yield _resized(Image.fromarray(frame), lambda *_: wanted)

    def _seeks_right(self, last: int) -> bool:
        """Whether what follows the second key frame is the same in a row and after a jump; as far as anything moves."""
        if self.keys[0] != 0:
            return False
        if len(self.keys) == 1 or last < self.keys[1]:
            return True
        key = self.keys[1]
        for length in (4, 64, 512):
            length = min(length, len(self.reader) - key)
            in_a_row = self._hashes(key - 1, length + 1)[1:]
            self.reader.seek_accurate(0)  # a jump to where it is would be none
            jumped = self._hashes(key, length)
            if in_a_row != jumped or len(set(jumped)) > 1:
                return in_a_row == jumped
        return True

    def _hashes(self, start: int, length: int) -> list[int]:
        self.reader.seek_accurate(start)
        return [hash(_array(self.reader.next()).tobytes()) for _ in range(length)]

    @contextmanager
    def _sentences(self, frame: int = 0):
        """Errors of decord, of many types, as sentences."""
        try:
            yield
        except Exception as error:
            raise self._refusal(_decord_reason(error), frame) from None

    def _refusal(self, reason: str, frame: int = 0) -> InputError:
        opinion = _second_opinion(self.path, frame)
        return InputError(f"video={str(self.path)!r} cannot be read by decord ({reason}); {opinion}.")

    def close(self) -> None:
        self.reader = None


def _array(frame: Any) -> np.ndarray:
    """decord answers arrays of its own, or those of whatever `decord.bridge` was set to."""
    return frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)


DECORD = {  # part of its message -> what it means
    "-1381258232": "it has no video stream",
    "-1128613112": "it has no decoder for the codec",
    "1094995529": "the data is damaged or cut short",
    "Error reading": "it finds no video in it",
    "Invalid frame count": "it has no frames",
    "duplicate frames": "frames are damaged, or lost after a jump",
    "Unable to handle EOF": "frames are damaged, or lost after a jump",
}


def _decord_reason(error: Exception) -> str:
    text = str(error)
    known = [reason for part, reason in DECORD.items() if part in text]
    return known[0] if known else (text.splitlines() or [type(error).__name__])[0].rstrip(". ")


def _second_opinion(path: Path, frame: int) -> str:
    """What PyAV would do about one frame of a file that decord does not read."""
    try:
        import av  # noqa: F401
    except ImportError:
        return "PyAV reads more: pip install tokenprune-vlm[video] and give reader='pyav', or give an intact video"
    try:
        with closing(PyAV(path)) as reader:
            next(reader.pictures([min(frame, len(reader.times) - 1)], lambda *size: size))
    except InputError as error:
        return f"PyAV cannot either ({_reason(error)}): give an intact video"
    return "PyAV opens it: give reader='pyav'"


def _reason(error: InputError) -> str:
    return str(error).partition("(")[2].rpartition(")")[0]


class PyAV:
    """A video file through PyAV."""

    def __init__(self, path: Path):
        try:
            import av
        except ImportError:
            raise InputError(f"reader='pyav' {MISSING.format(package='av')}.") from None
        self.path, self.av = path, av
        with self._sentences():
            self._restart()
            packets = [  # without their data
                (
                    packet.dts if packet.pts is None else packet.pts,
                    packet.duration,
                    packet.is_keyframe,
                    packet.is_discard,
                )
                for packet in self.container.demux(self.stream)
                if packet.size
            ]
            expected, tick, rate = self.stream.frames, float(self.stream.time_base), self.stream.average_rate
        if len(packets) < expected:
            raise self._refusal(f"{len(packets)} of its {expected} frames are there")
        shown = [packet[:3] for packet in packets if not packet[3]]
        if not shown or any(pts is None for pts, _, _ in shown):
            raise self._refusal("it has no time stamps" if shown else "it has no frames")
        shown.sort(key=itemgetter(0))
        self.pts, self.keys = [pts for pts, _, _ in shown], [pts for pts, _, key in shown if key]
        starts, last = np.array(self.pts) * tick, (shown[-1][1] or 0) * tick
        self.rate = float(rate or (len(starts) - 1) / max(starts[-1] - starts[0], SLACK) or 1)
        self.times, self.duration = _from_zero(starts, starts[-1] + last, self.rate)

    def _restart(self) -> None:
        self.container = self.av.open(str(self.path))
        if not self.container.streams.video:
            raise self._refusal("it has no video stream")
        self.stream = self.container.streams.video[0]
        if self.stream.codec_context is None:
            raise self._refusal("it has no decoder for the codec")
        self.stream.codec_context.thread_count, self.stream.thread_type = THREADS, "AUTO"
        self.frames, self.at = self.container.decode(self.stream), None

    def pictures(self, indices: list[int], fit: Fit) -> Iterator[Image]:
        from PIL import Image

        for i in indices:
            with self._sentences():
                frame = self._decoded(i)
                turns, picture = round(frame.rotation / 90), frame.to_ndarray(format="rgb24")
            yield _resized(Image.fromarray(np.ascontiguousarray(np.rot90(picture, turns))), fit)

    def _decoded(self, i: int) -> Any:
        """Frame i, from where the decoder is, from the last key frame before it, or from an earlier one."""
        target = self.pts[i]
        before = self.keys[: bisect_right(self.keys, target)]
        if self.at is not None and self.at < target and (not before or before[-1] <= self.at):
            starts = [lambda: None]
        else:
            starts = [partial(self._jump, key) for key in before[:-JUMPS:-1]] + [self._restart]
        for begin in starts:
            begin()
            for frame in self.frames:
                self.at = frame.pts if frame.pts is not None else frame.dts
                if self.at == target:
                    return frame
                if self.at is not None and self.at > target:
                    break
        raise self._refusal(f"its frame at {self.times[i]:g} s is missing")

    def _jump(self, key: int) -> None:
        self.container.seek(key, stream=self.stream)
        self.frames, self.at = self.container.decode(self.stream), None

    @contextmanager
    def _sentences(self):
        try:
            yield
        except self.av.FFmpegError as error:
            raise self._refusal(str(error.strerror or error)) from None

    def _refusal(self, reason: str) -> InputError:
        return InputError(f"video={str(self.path)!r} cannot be read by PyAV ({reason}): give an intact video.")

    def close(self) -> None:
        self.container.close()


def _from_zero(starts: np.ndarray, end: float, rate: float) -> tuple[np.ndarray, float]:
    """Times from the first frame on, in whole milliseconds, and the duration: the last frame takes some time, too."""
    times = np.round(starts - starts[0], 3)
    end = round(float(end - starts[0]), 3)
    return times, end if end > times[-1] else round(float(times[-1] + 1 / rate), 3)

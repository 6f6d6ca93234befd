"""Videos from files: frames chosen by number or by rate, with their times, decoded and resized one by one."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, InvalidArgumentError, nearest
from .readers import SLACK, Reader, open_reader

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers.video_utils import VideoMetadata

FRAMES = 32  # read unless told otherwise
LARGEST = 8 << 30  # bytes of the frames of one video
READERS = ("decord", "pyav")


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video, and where they were in it.

    Attributes:
        frames: [T, height, width, 3] uint8, RGB.
        times: seconds of each frame after the first one of the file.
        indices: number of each frame in the file.
        rate: frames per second of the file, on average.
        span: (start, end) in seconds of what the frames were chosen from.
        duration: seconds of the file.
        total: frames of the file.
        path: where it was read.
    """

    frames: np.ndarray = field(repr=False)
    times: tuple[float, ...]
    indices: tuple[int, ...]
    rate: float
    span: tuple[float, float]
    duration: float
    total: int
    path: str

    def __len__(self) -> int:
        return len(self.frames)

    def metadata(self) -> VideoMetadata:
        """What processors make time stamps of: `processor(videos=[video.frames], video_metadata=[video.metadata()],
        do_sample_frames=False, ...)`.

        They take the number of a frame over the frames per second for its time. Where a variable rate makes that wrong,
        the frames are counted in milliseconds. The total is that of the span, for the rate at which it was sampled.
        """
        from transformers.video_utils import VideoMetadata

        rate, indices = self.rate, list(self.indices)
        if any(abs(index / rate - time) > 0.5 / rate for index, time in zip(indices, self.times, strict=True)):
            rate, indices = 1000.0, [round(1000 * time) for time in self.times]
        height, width = self.frames.shape[1:3]
        return VideoMetadata(
            total_num_frames=max(len(indices), round(rate * (self.span[1] - self.span[0]))),
            fps=rate,
            width=width,
            height=height,
            duration=self.duration,
            video_backend="tokenprune",
            frames_indices=indices,
        )


def read_video(
    path: str | PathLike[str],
    *,
    frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    size: int | tuple[int, int] | None = None,
    reader: str = "decord",
) -> Video:
    """Frames of a video file, a folder of pictures or an animated GIF, PNG or WebP.

    Args:
        path: a folder holds one picture a second, in natural order of their names (2.png before 10.png).
        frames: that many, at equal steps from the first to the last of the span; all of them if there are fewer. One is
            the middle one. The default is 32.
        fps: instead, the frame that is shown at start, start + 1/fps, ...; each frame at most once.
        start, end: seconds; the span is start <= time < end. None: the whole rest.
        size: the longest edge at most (smaller frames are not enlarged), or (height, width) exactly; None: as it is.
        reader: of video files, "decord" or "pyav" (pip install tokenprune-vlm[video]).

    Frames of full size are held one at a time, apart from the few inside the decoder, and decoding starts at the last
    key frame before a wanted one. A file that was cut short is refused where its container tells (MP4); one made to be
    streamed (MKV, TS) is read as far as it goes.

    Raises:
        InvalidArgumentError: a value that makes no sense.
        InputError: nothing there, nothing that can be decoded, or nothing in this span.
    """
    _check(frames, fps, start, end, size, reader)
    with closing(open_reader(Path(path), reader)) as opened:
        return _read(opened, str(path), FRAMES if frames is None and fps is None else frames, fps, start, end, size)


def _read(reader: Reader, path: str, frames, fps, start, end, size) -> Video:
    times, duration = reader.times, reader.duration
    if start >= duration:
        raise InputError(
            f"start={start!r} is behind the end of video={path!r}, which is {duration:g} s: start earlier."
        )
    end = duration if end is None else min(end, duration)
    indices, kept = _chosen(times, frames, fps, start, end), None
    for place, picture in enumerate(reader.pictures(indices, partial(_fit, size))):
        if kept is None:
            kept = np.empty(_room(len(indices), picture, path), np.uint8)
        elif picture.size != (kept.shape[2], kept.shape[1]):
            raise InputError(
                f"video={path!r} has frames of different sizes ({kept.shape[2]}x{kept.shape[1]}, then "
                f"{picture.width}x{picture.height} at {times[indices[place]]:g} s): give size=(height, width)."
            )
        kept[place] = picture
    return Video(
        frames=kept,
        times=tuple(times[indices].tolist()),
        indices=tuple(indices),
        rate=reader.rate,
        span=(float(start), float(end)),
        duration=duration,
        total=len(times),
        path=path,
    )


def _chosen(times: np.ndarray, frames: int | None, fps: float | None, start: float, end: float) -> list[int]:
    """Numbers of the wanted frames among those that are shown in the span, ascending, at least one."""
    first = _shown(times, start)
    stop = max(first + 1, int(np.searchsorted(times, end - SLACK)))
    if frames is not None:
        count = min(frames, stop - first)
        places = np.linspace(first, stop - 1, count) if count > 1 else np.array([(first + stop) // 2])
        return places.round().astype(int).tolist()
    gaps = np.diff(times[first:stop])
    if not len(gaps) or fps * gaps.min() >= 1:
        return list(range(first, stop))
    wanted = start + np.arange(max(1, math.ceil((end - start) * fps - SLACK))) / fps
    return np.unique(_shown(times, wanted)).tolist()


def _shown(times: np.ndarray, at: Any) -> Any:
    """Number of the frame that is shown at a time, or at several."""
    return (np.searchsorted(times, np.asarray(at) + SLACK, side="right") - 1).clip(0)


def _fit(size: int | tuple[int, int] | None, width: int, height: int) -> tuple[int, int]:
    """(width, height) of a frame as `size` asks for it."""
    if isinstance(size, tuple):
        return size[1], size[0]
    longest = max(width, height)
    if size is None or longest <= size:
        return width, height
    return max(1, round(width * size / longest)), max(1, round(height * size / longest))


def _room(count: int, picture: Image, path: str) -> tuple[int, int, int, int]:
    """The shape of all frames.

    Raises:
        InputError: they would not fit.
    """
    if (needed := 3 * count * picture.width * picture.height) > LARGEST:
        raise InputError(
            f"video={path!r} gives {count} frames of {picture.width}x{picture.height}, {needed / 2**30:.0f} GiB: ask "
            "for fewer (frames, fps) or smaller ones (size)."
        )
    return count, picture.height, picture.width, 3


def _check(frames, fps, start, end, size, reader) -> None:
    """Arguments that make sense whatever the file."""
    if frames is not None and fps is not None:
        raise InvalidArgumentError(
            f"frames={frames!r} and fps={fps!r} are two ways to choose frames: give one of them."
        )
    if frames is not None and not _counts(frames):
        raise InvalidArgumentError(f"frames={frames!r} is no number of frames: give an int of at least 1.")
    for name, value in (("fps", fps), ("end", end)):
        if value is not None and not (_finite(value) and value > 0):
            raise InvalidArgumentError(f"{name}={value!r} is no number above 0: give a float.")
    if not (_finite(start) and start >= 0):
        raise InvalidArgumentError(f"start={start!r} is no time: give seconds from the beginning, at least 0.")
    if end is not None and end <= start:
        raise InvalidArgumentError(f"end={end!r} is not behind start={start!r}: give a later end.")
    edges = size if isinstance(size, tuple) and len(size) == 2 else (size,)
    if size is not None and not all(map(_counts, edges)):
        raise InvalidArgumentError(f"size={size!r} is no size in pixels: give the longest edge or (height, width).")
    if reader not in READERS:
        raise InvalidArgumentError(f"reader={reader!r} is not one of {', '.join(READERS)}{nearest(reader, READERS)}.")


def _counts(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)

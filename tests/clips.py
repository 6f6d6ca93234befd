"""Video files that tell which frame is which: frame i is as bright as STEP i."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 4
FRAMES = 60
WIDTH, HEIGHT, RATE = 64, 48, 10


def frame(brightness: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Of one brightness, with a white mark in the left upper corner."""
    made = np.full((height, width, 3), brightness, np.uint8)
    made[: height // 4, : width // 4] = 255
    return made


def write(
    path: Path,
    *,
    codec: str = "libx264",
    shown: Sequence[int] = range(FRAMES),
    ms: Sequence[int] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    key: int = 30,
    rate: int = RATE,
    **options: str,
) -> Path:
    """A video.

    Args:
        shown: frame i is as bright as STEP * shown[i].
        ms: times of the frames, for a variable rate.
        key: frames from one key frame to the next.
    """
    container = {name: options.pop(name) for name in ("movflags",) if name in options}
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"g": str(key), **({"crf": "10"} if "26" in codec else {}), **options}
        if ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, number in enumerate(shown):
            made = av.VideoFrame.from_ndarray(frame(STEP * number, *size), format="rgb24")
            if ms is not None:
                made.pts, made.time_base = ms[i], Fraction(1, 1000)
            file.mux(stream.encode(made))
        file.start_encoding()  # a header, if there are no frames
        file.mux(stream.encode())
    return path


def open_gops(path: Path, shown: Sequence[int] = range(FRAMES)) -> Path:
    """With frames before a key frame that come behind it in the file."""
    return write(path, codec="libx265", shown=shown, **{"x265-params": "open-gop=1:log-level=none:keyint=30:crf=10"})


def sound(path: Path) -> Path:
    """Without pictures."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        noise = np.random.default_rng(0).normal(0, 0.1, (20, 1, 1024)).astype(np.float32)
        for i, samples in enumerate(noise):
            made = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            made.rate, made.pts = 16000, 1024 * i
            file.mux(stream.encode(made))
        file.mux(stream.encode())
    return path


def turned(path: Path, source: Path, height: int) -> Path:
    """An MP4 that says of itself that it is to be turned by a quarter, clockwise, as phones write them."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 4 + (32 if data[at] else 20) + 16  # version and flags, times and duration, layer and volume
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, height * one, 0, 1 << 30)
    path.write_bytes(data)
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are."""
    right = frames[:, frames.shape[1] // 2 :, frames.shape[2] // 2 :]
    return np.round(right.mean((1, 2, 3)) / STEP).astype(int).tolist()

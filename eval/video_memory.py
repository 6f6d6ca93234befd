"""What reading a long video costs: `python -m tokenprune.eval.video_memory [--minutes 10 120]`.

Writes synthetic 1080p H.264 files of 30 frames a second, with a key frame every 5 seconds, and reads each in a process
of its own: the memory that `read_video` adds at its peak, the frames that it answers among it, and the time. Linux,
needs decord and PyAV (pip install tokenprune-vlm[video]).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..video import read_video
from .clock import machine

OUT = Path(__file__).parent / "results" / "video_memory.json"
SIZE, RATE, KEY, PIECE = (1920, 1080), 30, 150, 10  # pixels, frames per second, between key frames; seconds drawn
WAYS = (  # reader, frames, longest edge
    ("decord", 32, 1024),
    ("decord", 32, None),
    ("decord", 256, 448),
    ("pyav", 32, 1024),
    ("pyav", 256, 448),
)


def write(path: Path, seconds: int) -> None:
    """A red square that crosses a blocky background in PIECE seconds, over and over: packets are drawn once."""
    import av

    width, height = SIZE
    blocks = np.random.default_rng(0).integers(60, 200, (height // 40, width // 40, 3))
    background = np.kron(blocks, np.ones((40, 40, 1))).astype(np.uint8)
    count = PIECE * RATE
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "35", "g": str(KEY)}
        packets = []
        for i in range(count):
            frame = background.copy()
            left = i * (width - 200) // count
            frame[300:500, left : left + 200] = (255, 40, 40)
            packets += stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        packets += stream.encode()
        kept = [(bytes(one), one.pts, one.dts, one.is_keyframe, one.time_base) for one in packets]
        for again in range(seconds // PIECE):
            for data, pts, dts, key, base in kept:
                tick = round(1 / (RATE * base))
                one = av.Packet(data)
                one.pts, one.dts = pts + again * count * tick, dts + again * count * tick
                one.duration, one.is_keyframe, one.time_base, one.stream = tick, key, base, stream
                file.mux(one)


def measured(path: str, reader: str, frames: int, size: int | None) -> dict[str, float]:
    """In this process, which is to have read nothing before."""
    __import__({"pyav": "av"}.get(reader, reader))  # is loaded, and not counted
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    begun = time.perf_counter()
    video = read_video(path, frames=frames, size=size, reader=reader)
    seconds = time.perf_counter() - begun
    # of this program alone: ru_maxrss begins at what the process held that started it
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    return {
        "extra_mib": round((peak - before) / 2**20),
        "answer_mib": round(video.frames.nbytes / 2**20),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, nargs="+", default=[10, 120])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(*json.loads(options.measure))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in options.minutes:
            path = Path(folder) / f"{minutes}.mp4"
            write(path, 60 * minutes)
            for reader, frames, size in WAYS:
                given = json.dumps([str(path), reader, frames, size])
                command = [sys.executable, "-m", __spec__.name, "--measure", given]
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                rows.append({"minutes": minutes, "reader": reader, "frames": frames, "size": size, **json.loads(found)})
                print(rows[-1], file=sys.stderr)
    file = {"size": SIZE, "rate": RATE, "between_key_frames": KEY}
    options.out.write_text(json.dumps({"machine": machine(), "file": file, "rows": rows}, indent=2) + "\n")
    table = Table(*rows[0], title=f"1080p at {RATE} frames a second, read with read_video", box=None)
    for row in rows:
        table.add_row(*("as it is" if value is None else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()

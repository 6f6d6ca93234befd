"""Write the sample clips of the demo: `python -m tokenprune.eval.shapes.video_pictures` -> `samples/` (needs PyAV)."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from .pictures import SAMPLES
from .scenes import stream
from .video_clips import Clip, clip
from .video_questions import KINDS, ask

SEEDS = {10_057: "mp4", 10_030: "gif", 10_034: "gif"}  # of the test split, beyond the clips of the accuracy
COLORS = 64  # of a GIF frame
RATE = 4  # frames a second
SCALE = 2  # an MP4 stores colour at half the size, so its frames are enlarged; the processor undoes it


def write_gif(drawn: Clip, path: Path) -> None:
    """Few colours and no dithering: noise would otherwise fill the file."""
    first, *rest = (picture.quantize(COLORS, dither=Image.Dither.NONE) for picture in drawn.pictures)
    first.save(path, save_all=True, append_images=rest, duration=1000 // RATE, loop=0)


def write_mp4(drawn: Clip, path: Path) -> None:
    """H.264, every frame of the clip once."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20", "preset": "slow"})
        height, width = (side * SCALE for side in drawn.frames.shape[1:3])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        for frame in drawn.frames:
            large = np.ascontiguousarray(frame.repeat(SCALE, 0).repeat(SCALE, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    SAMPLES.mkdir(exist_ok=True)
    listed = []
    for seed, ending in SEEDS.items():
        rng = stream("test", seed)
        drawn = clip(rng)
        name = f"clip-{seed}.{ending}"
        {"gif": write_gif, "mp4": write_mp4}[ending](drawn, SAMPLES / name)
        asked = [question for kind in KINDS if (question := ask(drawn.actors, kind, rng))]
        questions = [{"question": q.text, "answer": q.answer, "kind": q.kind} for q in asked]
        listed.append({"file": name, "seed": seed, "frames": len(drawn.frames), "questions": questions})
    (SAMPLES / "clips.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()

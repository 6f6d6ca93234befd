"""Render the sample pictures of the demo: `python -m tokenprune.eval.shapes.pictures` -> `samples/`."""

import json
from pathlib import Path

from .questions import KINDS, ask
from .scenes import scene, stream

SAMPLES = Path(__file__).parent / "samples"
SCALE = 4  # 512 px a side; the processor brings a picture back to the model's size
SEEDS = (10_000, 10_001, 10_011, 10_012, 10_017, 10_027)  # of the test split, beyond the scenes of the accuracy


def main() -> None:
    SAMPLES.mkdir(exist_ok=True)
    listed = []
    for seed in SEEDS:
        rng = stream("test", seed)
        drawn = scene(rng, SCALE)
        name = f"scene-{seed}.png"
        drawn.picture.save(SAMPLES / name, optimize=True)
        asked = [question for kind in KINDS if (question := ask(drawn.items, kind, rng))]
        questions = [{"question": q.text, "answer": q.answer, "kind": q.kind} for q in asked]
        listed.append({"file": name, "seed": seed, "questions": questions})
    (SAMPLES / "samples.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Accuracy of the video model by kind: `python -m tokenprune.eval.shapes.video_evaluate [--clips N] [--dense-only]`."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F
from transformers import PreTrainedModel

from .evaluate import accuracy, majority
from .inference import VIDEO_CHECKPOINT, load_video
from .modeling import pixel_values
from .video_heldout import VideoSample, held_out_clips, noise, one_frame, shuffled
from .video_questions import KINDS


@torch.inference_mode()
def redundancy(model: PreTrainedModel, samples: Iterable[VideoSample]) -> dict[str, float]:
    """Mean cosine of a visual token with the token at its place one frame later, over cells without and with a shape.

    "background": no shape in either frame; "still": the same shape covers the same patches; "moving": a moving shape is
    in one of the two at least.
    """
    found: dict[str, list[torch.Tensor]] = {"background": [], "still": [], "moving": []}
    for sample in samples:
        frames = pixel_values(torch.from_numpy(np.ascontiguousarray(sample.frames)))
        tokens = model.get_video_features(frames[None]).pooler_output[0, :-1].unflatten(0, (len(frames), -1))
        cosine = F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1)
        owner = torch.from_numpy(sample.clip.owner.copy()).unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
        owner = owner.transpose(2, 3).reshape(len(frames), -1, 4)
        pair = torch.cat([owner[1:], owner[:-1]], -1)
        moves = torch.tensor([*(actor.behaviour == "move" for actor in sample.clip.actors), False])
        found["background"].append(cosine[(pair == -1).all(-1)])
        still = (owner[1:] == owner[:-1]).all(-1) & (pair >= 0).any(-1) & ~moves[pair].any(-1)
        found["still"].append(cosine[still])
        found["moving"].append(cosine[moves[pair].any(-1)])
    return {name: torch.cat(values).mean().item() for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.shapes.video_evaluate", description=__doc__)
    parser.add_argument("--clips", type=int, default=2000, help="held-out clips, one question each")
    parser.add_argument("--first", type=int, default=0, help="number of the first clip")
    parser.add_argument("--dense-only", action="store_true", help="only the clips as they are")
    parser.add_argument("--checkpoint", type=Path, default=VIDEO_CHECKPOINT)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    model, processor = load_video(folder=arguments.checkpoint)
    samples = list(held_out_clips(arguments.clips, arguments.first))
    numbered = list(enumerate(samples))
    views = {"as it is": samples}
    if not arguments.dense_only:
        views["shuffled"] = [shuffled(sample, seed) for seed, sample in numbered]
        views["first frame only"] = [one_frame(sample) for sample in samples]
        views["noise"] = [noise(sample, seed) for seed, sample in numbered]
    columns = {
        name: accuracy(model, processor, track(view, name), arguments.batch_size) for name, view in views.items()
    }
    columns["majority"] = majority(samples)
    table = Table("kind", "asked", *(f"{name} %" for name in columns))
    for counts in columns.values():
        counts["all clips"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    for kind in (*KINDS, "all clips"):
        shares = (f"{counts[kind][0] / counts[kind][1]:.1%}" for counts in columns.values())
        table.add_row(kind, str(columns["majority"][kind][1]), *shares)
    Console().print(table)
    cosines = redundancy(model, samples[:200])
    Console().print("cosine with the next frame:", ", ".join(f"{name} {value:.2f}" for name, value in cosines.items()))


if __name__ == "__main__":
    main()

"""Which tokens of clips policies keep: `python -m tokenprune.eval.video_kept [--clips 200]`.

The clips are drawn, so it is known what every token shows: background, a shape that stands still, or one that moves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from . import shapes
from .asking import Pruned
from .files import at_least, indented, publish
from .shapes.scenes import GRID
from .video_asking import encoded
from .video_rows import Row, video_rows

BACKGROUND, STILL, MOVING = 0, 1, 2


def shown(sample: shapes.VideoSample) -> Tensor:
    """[T * CELLS] what each visual token shows, the most striking of its four patches."""
    moves = torch.tensor(
        [MOVING if actor.behaviour == "move" else STILL for actor in sample.clip.actors] + [BACKGROUND]
    )
    owner = torch.from_numpy(np.ascontiguousarray(sample.clip.owner))  # -1, the background, is the last
    return moves[owner].unflatten(1, (GRID // 2, 2)).unflatten(3, (GRID // 2, 2)).amax((2, 4)).flatten()


def facts(kept: Tensor, what: Tensor, frames: int) -> tuple[float, ...]:
    """Of one clip: shares kept of the background, of still and of moving shapes; frames with a token; the fullest."""
    mask = torch.zeros(len(what), dtype=torch.bool).scatter(0, kept, True)
    shares = [float(mask[what == kind].float().mean()) if (what == kind).any() else np.nan for kind in range(3)]
    counts = mask.view(frames, -1).sum(1)
    return *shares, int((counts > 0).sum()), float(counts.max() / counts.sum())


NAMES = ("background", "still shapes", "moving shapes", "frames", "fullest frame")


@torch.inference_mode()
def measure(clips: int, rows: dict[str, Row], console: Console) -> dict:
    model, processor = shapes.load_video()
    samples = list(shapes.held_out_clips(clips))
    policies = [one for row in rows.values() for one in row.policies]
    batches = list(encoded(model, processor, samples, policies))
    found = []
    for name, row in track(rows.items(), "rows", console=console):
        ways = Pruned(model, processor, row.policies[0])
        for keep in row.keeps:
            told = []
            for batch in batches:
                with ways.at(keep, batch):
                    ways.words(ways.encoded(batch, keep))
                    units = ways.report().units
                for unit, sample in zip(units, batch.samples, strict=True):
                    told.append(facts(unit.indices, shown(sample), len(sample.frames)))
            means = np.nanmean(np.array(told), 0)
            found.append({"row": name, "keep": keep, **dict(zip(NAMES, means.round(4).tolist(), strict=True))})
    every = torch.cat([shown(sample) for sample in samples])
    shares = [round(float((every == kind).float().mean()), 4) for kind in range(3)]
    return {"clips": clips, "shares": dict(zip(NAMES, shares, strict=False)), "rows": found}


def table(result: dict) -> str:
    """Markdown."""
    by = {(row["row"], row["keep"]): row for row in result["rows"]}
    keeps = sorted({keep for _, keep in by}, reverse=True)
    heads = " | ".join(f"{keep:.0%}" for keep in keeps)
    lines = [f"| kept of background / still / moving shapes; frames; fullest | {heads} |"]
    lines.append("|---|" + "---:|" * len(keeps))
    for name in dict.fromkeys(row for row, _ in by):
        texts = []
        for keep in keeps:
            one = by[name, keep]
            shares = " / ".join(f"{100 * one[kind]:.0f}" for kind in NAMES[:3])
            texts.append(f"{shares}; {one['frames']:.1f}; {one['fullest frame']:.0%}")
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    shares = ", ".join(f"{share:.1%} {kind}" for kind, share in result["shares"].items())
    lines += [
        "",
        f"Mean over {result['clips']} held-out clips of 8 frames, whose tokens are {shares}. Kept: % of the tokens of "
        "each kind that a survivor stands at. Frames: with any survivor. Fullest: share of the survivors that stand in "
        "one frame.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.video_kept", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=200, help="held-out clips")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of video_kept.*")
    given = parser.parse_args()
    at_least(parser, given, clips=1, threads=1)
    torch.set_num_threads(given.threads)
    rows = {name: row for name, row in video_rows(1).items() if row.group == "exact"}
    result = measure(given.clips, rows, Console(stderr=True))
    publish(given.out, "video_kept", indented(result), table(result))


if __name__ == "__main__":
    main()

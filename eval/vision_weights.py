"""What a language model loses with the patches that its tower merged: `python -m tokenprune.eval.vision_weights`.

The embedded model answers with patches merged by ToMe in the tower, and reads them in three ways: all of them restored;
those left alone, each weighing one; those left, each weighing as many as it carries, by the log of that number added
to its attention scores. What comes back from the second to the third was lost by weight, not by information; what the
first lacks was lost in the tower.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from .. import RandomBlocks, ToMe, wrap
from . import shapes
from .asking import Batch, encoded
from .files import at_least, publish, written
from .weights import Kept, first_word

MERGES = (8, 16, 24, 32, 40, 48)


def kept_patches(model, batch: Batch, policy: ToMe) -> tuple[torch.Tensor, list[Kept]]:
    """First answer tokens [B] with all patches restored; and of every question what is left in the tower."""
    features = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: features.append(output))
    with hook, wrap(model, policy, restore=True) as handle:
        words = model(**batch.given(), logits_to_keep=1).logits[:, -1].argmax(-1)
        towers = handle.report().towers
    (rows,) = features
    return words, [
        Kept(one.indices, row[one.indices], one.source.bincount(minlength=one.kept))
        for one, row in zip(towers, rows, strict=True)
    ]


@torch.inference_mode()
def measure(scenes: int, console: Console) -> dict:
    """Shares of right answers by r."""
    model, processor = shapes.load()
    batches = list(encoded(model, processor, list(shapes.held_out(scenes))))
    rows = []
    for r in track(MERGES, "answering", console=console):
        right: dict[str, list[bool]] = {"restored": [], "left": [], "left, weighted": [], "random": []}
        for batch in batches:
            words, kept = kept_patches(model, batch, ToMe(r=r))
            right["restored"] += (words == batch.answers).tolist()
            for i, one in enumerate(kept):
                for name, weighted in (("left", False), ("left, weighted", True)):
                    word = first_word(model, batch, i, one, weighted=weighted)
                    right[name].append(word == int(batch.answers[i]))
            with wrap(model, RandomBlocks(r=r)):
                words = model(**batch.given(), logits_to_keep=1).logits[:, -1].argmax(-1)
            right["random"] += (words == batch.answers).tolist()
        shares = {name: float(np.mean(answers)) for name, answers in right.items()}
        rows.append({"r": r, "kept": len(kept[0].indices), **shares})
    return {"scenes": scenes, "rows": rows}


def table(result: dict) -> str:
    """Markdown."""
    names = {
        "restored": "all, restored",
        "left": "those left",
        "left, weighted": "those left, weighing what they carry",
        "random": "`random-blocks` instead",
    }
    heads = " | ".join(f"r={row['r']} ({row['kept']})" for row in result["rows"])
    lines = [f"| the language model reads | {heads} |", "|---|" + "---:|" * len(result["rows"])]
    for name, said in names.items():
        lines.append(f"| {said} | " + " | ".join(f"{100 * row[name]:.1f}" for row in result["rows"]) + " |")
    lines += [
        "",
        f"Accuracy in % on {result['scenes']:,} held-out scenes, with r patches merged in each of the tower's five "
        "blocks (in brackets: patches left of 256).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.vision_weights", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes, one question each")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of vision_weights.*")
    given = parser.parse_args()
    at_least(parser, given, scenes=1, threads=1)
    torch.set_num_threads(given.threads)
    result = measure(given.scenes, Console(stderr=True))
    publish(given.out, "vision_weights", written(result), table(result))


if __name__ == "__main__":
    main()

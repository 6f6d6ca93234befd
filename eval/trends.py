"""How attention in the embedded model grows with a token's place: `python -m tokenprune.eval.trends [--scenes 2000]`.

Fitted on scenes of the training split, so that `debiased` can be measured on held-out ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from .. import AdaptInfer, FastV, HiMAP, LayerPolicy, PyramidDrop, SparseVLM
from ..calibrate import fit_trend
from . import shapes
from .asking import Way, encoded
from .inside import with_schedule


def scorers() -> dict[str, LayerPolicy]:
    """Policy and the layer whose attention scores in its first event -> the policy."""
    first = {"pyramiddrop": PyramidDrop(), "sparsevlm": SparseVLM(), "sparsevlm, plus": SparseVLM(version="plus")}
    first["adaptinfer"] = AdaptInfer()
    return {
        **{f"fastv, layer {drop - 1}": FastV(layer=drop, keep=1) for drop in (1, 2, 3)},
        "himap, layer 0": with_schedule(HiMAP(), (1, 2), (1, 1)),
        **{f"{name}, layer {1 - policy.lag}": with_schedule(policy, (1,), (1,)) for name, policy in first.items()},
    }


@torch.inference_mode()
def measure(scenes: int) -> dict[str, dict]:
    """Name -> the fields of its trend."""
    model, processor = shapes.load()
    dense = Way(model, processor)
    samples = list(shapes.held_out(scenes, split="train"))
    batches = [dense.encoded(batch, 1.0) for batch in encoded(model, processor, samples)]
    runs = track(scorers().items(), "fitting", console=Console(stderr=True), total=len(scorers()))
    return {name: asdict(fit_trend(model, policy, batches)) for name, policy in runs}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.trends", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2000, help="training scenes, one question each")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder for trends.json")
    given = parser.parse_args()
    if given.scenes < 1:
        parser.error(f"--scenes {given.scenes} is below 1")
    found = measure(given.scenes)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "trends.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, trend in found.items():
        print(f"{name:28} b {trend['coefficients'][0]:+.3f}  R² {trend['facts']['r2']:.3f}")


if __name__ == "__main__":
    main()

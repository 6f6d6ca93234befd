"""Throughput of vision transformers with fewer tokens: `python -m tokenprune.eval.vision_speed [--rounds 7]`.

Random weights, so that only shapes matter. In every round the dense model and every policy take one batch each; what is
told is the median over rounds of dense time / time within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import truediv as div
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

from .. import EViT, RandomBlocks, ToMe, VisionPolicy, wrap
from ..report import TowerReport
from .clock import in_turns, machine, ratio
from .files import at_least, publish, written
from .vision_costs import mildest, probed, share

DENSE = "dense"
HALF = 0.5  # of the dense FLOPs
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Size:
    """width, depth, heads, inner width; pixels of a side of the image and of a patch."""

    width: int
    depth: int
    heads: int
    inner: int
    image: int = 224
    patch: int = 16

    @property
    def config(self) -> dict[str, int]:
        return {
            "hidden_size": self.width, "num_hidden_layers": self.depth, "num_attention_heads": self.heads,
            "intermediate_size": self.inner, "image_size": self.image, "patch_size": self.patch,
        }  # fmt: skip


SIZES = {
    "ViT-S": Size(384, 12, 6, 1536),
    "ViT-B": Size(768, 12, 12, 3072),
    "ViT-L": Size(1024, 24, 16, 4096),
    "CLIP-L/336": Size(1024, 24, 16, 4096, 336, 14),
    "SigLIP-so400m/384": Size(1152, 27, 16, 4304, 384, 14),
}


def model(name: str, library: str) -> nn.Module:
    """With random weights. CLIP and SigLIP are the towers of LLaVA models, of transformers only."""
    torch.manual_seed(0)
    size = SIZES[name]
    if name.startswith("CLIP"):
        return CLIPVisionModel(CLIPVisionConfig(**size.config))
    if name.startswith("SigLIP"):
        return SiglipVisionModel(SiglipVisionConfig(**size.config, vision_use_head=False))
    if library == "hf":
        return ViTForImageClassification(ViTConfig(**size.config, num_labels=1000))
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=size.image, patch_size=size.patch, embed_dim=size.width, depth=size.depth, num_heads=size.heads,
        mlp_ratio=size.inner / size.width,
    )  # fmt: skip


def policies(tower: TowerReport, *, has_class: bool) -> dict[str, VisionPolicy]:
    """ToMe up to the r that takes half of the FLOPs, and what else takes half."""
    half = mildest(lambda r: ToMe(r=r), tower.total, HALF, tower).r
    found = {f"tome, r={r}": ToMe(r=r) for r in sorted({max(1, half * i // 4) for i in (1, 2, 3, 4)})}
    found[f"tome, r={half}, plain"] = ToMe(r=half, proportional=False)
    found[f"random-blocks, r={half}"] = RandomBlocks(r=half)
    if has_class:
        evit = mildest(lambda n: EViT(keep_rate=1 - n / 100), 99, HALF, tower)
        found[f"evit, keep_rate={evit.keep_rate:g}"] = evit
    return found


def seconds(made: nn.Module, pixels: Tensor, policy: VisionPolicy | None) -> float:
    """One batch. Wrapping is done before."""
    wait: Callable[[], None] = torch.cuda.synchronize if pixels.is_cuda else lambda: None
    with wrap(made, policy) if policy else torch.no_grad():
        wait()
        begun = time.perf_counter()
        made(pixels)
        wait()
        return time.perf_counter() - begun


@torch.inference_mode()
def measure(
    names: list[str], libraries: list[str], dtypes: list[str], *, device: str, batch: int, rounds: int, console: Console
) -> dict:
    """A row for every shape, library, dtype and policy, the dense model first."""
    rows = []
    runs = [
        (name, library, dtype)
        for name in names
        for library in (libraries if name.startswith("ViT") else libraries[:1])
        for dtype in dtypes
    ]
    for name, library, dtype in track(runs, "shapes", console=console):
        made = model(name, library).eval().to(device, DTYPES[dtype])
        side = SIZES[name].image
        pixels = torch.randn(batch, 3, side, side).to(device, DTYPES[dtype])
        tower = probed(made, pixels)
        tried = {DENSE: None, **policies(tower, has_class=not name.startswith("SigLIP"))}
        took = in_turns({key: partial(seconds, made, pixels, one) for key, one in tried.items()}, rounds)
        for key, one in tried.items():
            row = {"shape": name, "library": library, "dtype": dtype, "tokens": tower.tokens, "policy": key}
            row["left"] = tower.total if one is None else one.counts(len(tower.blocks), tower.total, tower.grid)[-1]
            row["flops"] = 1.0 if one is None else round(share(one, tower), 4)
            row["speed"] = round(ratio(took[DENSE], took[key]), 3)
            row["range"] = [round(pick(map(div, took[DENSE], took[key])), 3) for pick in (min, max)]
            if device == "cuda":
                row["images_per_second"] = round(batch / statistics.median(took[key]), 1)
            rows.append(row)
        del made
    where = torch.cuda.get_device_name() if device == "cuda" else machine()
    return {"device": where, "batch": batch, "rounds": rounds, "rows": rows}


def table(result: dict) -> str:
    """Markdown: a line for every policy, a column for every library and dtype."""
    columns = list(dict.fromkeys((row["library"], row["dtype"]) for row in result["rows"]))
    by: dict[tuple, dict] = {}
    for row in result["rows"]:
        by.setdefault((row["shape"], row["policy"], row["flops"], row["left"], row["tokens"]), {})[
            row["library"], row["dtype"]
        ] = row
    lines = ["| shape | policy | patches left | FLOPs | " + " | ".join(", ".join(c) for c in columns) + " |"]
    lines.append("|---|---|---:|---:|" + "---:|" * len(columns))
    for (shape, policy, flops, left, tokens), rows in by.items():
        texts = " | ".join(_text(rows[c]) if c in rows else "" for c in columns)
        named = f"{shape} ({tokens} tokens)" if policy == DENSE else ""
        lines.append(f"| {named} | {policy} | {left} | {flops:.0%} | {texts} |")
    lines += [
        "",
        f"Images per second as a multiple of the dense model's: median (lowest to highest) of {result['rounds']} "
        f"rounds in which all take turns; batch {result['batch']}, random weights, on {result['device']}. FLOPs: "
        "estimated, of the blocks. hf: transformers; timm: the same shape there.",
    ]
    return "\n".join(lines) + "\n"


def _text(row: dict) -> str:
    absolute = f", {row['images_per_second']:,.0f} images/s" if "images_per_second" in row else ""
    if row["policy"] == DENSE:
        return f"1{absolute}"
    low, high = row["range"]
    return f"{row['speed']:.2f} ({low:.2f} to {high:.2f}){absolute}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.vision_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SIZES, help="only this one; may be repeated")
    parser.add_argument("--library", action="append", choices=("hf", "timm"), help="of the ViTs; both unless given")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="float32 and bfloat16 unless given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--rounds", type=int, default=7, help="of every measurement")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of vision_speed.*")
    given = parser.parse_args()
    at_least(parser, given, batch=1, rounds=1, threads=1)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and torch finds none: use cpu")
    return given


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    result = measure(
        given.shape or list(SIZES),
        given.library or ["hf", "timm"],
        given.dtype or ["float32", "bfloat16"],
        device=given.device,
        batch=given.batch,
        rounds=given.rounds,
        console=Console(stderr=True),
    )
    publish(
        given.out,
        "vision_speed" + (f"_{given.device}" if given.device != "cpu" else ""),
        written(result),
        table(result),
    )


if __name__ == "__main__":
    main()

"""What selection costs beside the prefill: `python -m tokenprune.eval.video_time [--rounds 3] [--threads 1]`.

A decoder of the size of LLaVA-OneVision-0.5B's (Qwen2, 24 layers of width 896) with random weights, in bfloat16 on the
CPU, and 32 frames of 196 tokens. Its layers are alike, so some of them are run and counted as often as it takes. Times
are ratios within a round, in which the dense prefill, the selection and the prefill after it follow each other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from .. import DecoderShape, Policy, ProjectorPolicy, VisualTokens
from ..errors import PolicyError
from ..tokens import Tap
from .clock import machine
from .files import at_least, indented, publish
from .training_free import training_free
from .video_rows import BASELINES, IMAGES

LAYERS, WIDTH, INNER, HEADS, KEY_VALUE = 24, 896, 4864, 14, 2
FRAMES, SIDE, TEXT = 32, 14, 32
KEEP = 0.1
STILL = 0.7  # of the tokens of a frame that stay as they are but for noise
SCENE = 8  # frames
TOWER = 64  # width of what a policy reads in a tower that is not timed


@dataclass(frozen=True)
class Size:
    """What is timed: frames, their tokens along a side, and the decoder's layers that run."""

    frames: int = FRAMES
    side: int = SIDE
    run: int = 4
    width: int = WIDTH

    @property
    def visual(self) -> int:
        return self.frames * self.side**2

    @property
    def shape(self) -> DecoderShape:
        head = WIDTH // HEADS
        return DecoderShape(
            layers=LAYERS, hidden=WIDTH, intermediate=INNER, query=HEADS * head, key_value=KEY_VALUE * head,
            dtype_bytes=2,
        )  # fmt: skip


def decoder(size: Size) -> Qwen2Model:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=size.width, intermediate_size=INNER * size.width // WIDTH, num_hidden_layers=size.run,
        num_attention_heads=HEADS, num_key_value_heads=KEY_VALUE, vocab_size=8, max_position_embeddings=32768,
    )  # fmt: skip
    return Qwen2Model(config).to(torch.bfloat16).eval()


class Taps(dict):
    """What a tower that is not there would say of every token, the same each time it is asked."""

    def __init__(self, count: int, frames: int):
        super().__init__()
        self.count, self.frames = count, frames

    def __missing__(self, tap: Tap) -> Tensor:
        drawn = torch.Generator().manual_seed(1)
        width = {"attention": 1, "class_token": TOWER, "keys": TOWER}[tap.what]
        values = torch.rand(self.frames, self.count // self.frames, width, generator=drawn)
        if tap.what == "class_token":
            values = values[:, :1].expand_as(values)
        self[tap] = values.reshape(1, self.count, 1, width)
        return self[tap]


def footage(size: Size) -> VisualTokens:
    """Scenes of a few frames, in which most tokens stay what they are, with a little noise."""
    drawn, n = torch.Generator().manual_seed(0), size.side**2
    frames = []
    for frame in range(size.frames):
        if frame % SCENE == 0:
            scene = torch.randn(n, size.width, generator=drawn)
        moving = (torch.rand(n, 1, generator=drawn) > STILL).float()
        seen = scene * (1 - moving) + torch.randn(n, size.width, generator=drawn) * moving
        frames.append(seen + 0.1 * torch.randn(n, size.width, generator=drawn))
    features = torch.cat(frames)[None].to(torch.bfloat16)
    tower = Taps(size.visual, size.frames)
    return VisualTokens(features=features, tower=tower, grid=(size.frames, size.side, size.side), keys=[0])


def policies() -> dict[str, ProjectorPolicy]:
    """Those that compare frames, the baselines, and some for images."""
    known = training_free("projector")
    compare = [name for name, cls in known.items() if "image" not in cls.kinds]
    return {name: known[name](keep=KEEP) for name in dict.fromkeys((*BASELINES, *IMAGES, *compare))}


def seconds(call: Callable[[], Any]) -> float:
    """Of the processor, so that other programs on the machine do not count."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


@torch.inference_mode()
def measure(size: Size, rounds: int, console: Console, tried: dict[str, Policy]) -> dict:
    """Medians over rounds of ratios within a round."""
    made, tokens = decoder(size), footage(size)
    count = next(iter(tried.values())).budget.count(size.visual)
    whole = torch.randn(1, size.visual + TEXT, size.width).to(torch.bfloat16)
    short = whole[:, : count + TEXT]
    times = LAYERS / size.run
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in tried}
    for turn in track(range(rounds + 1), "rounds", console=console):
        dense = times * seconds(lambda: made(inputs_embeds=whole, use_cache=True)) if turn else None
        pruned = times * min(seconds(lambda: made(inputs_embeds=short, use_cache=True)) for _ in range(2))
        for name, policy in tried.items():
            try:
                took = seconds(lambda one=policy: one.select(tokens, count))
            except PolicyError:
                continue
            if turn:  # first calls pay for what later ones find ready
                found[name].append((took / dense, took / pruned))
        if turn:
            found.setdefault("", []).append((pruned / dense, 1.0))
    shape, flops = size.shape, {}
    for name, n in (("dense", size.visual), ("pruned", count)):
        flops[name] = shape.flops(n + TEXT)
    ratios = found.pop("")
    return {
        "machine": machine(),
        "visual": size.visual,
        "kept": count,
        "layers": {"run": size.run, "counted": LAYERS},
        "flops": flops,
        "prefill": round(statistics.median(one for one, _ in ratios), 4),
        "rows": [
            {
                "policy": name,
                "of_dense": round(statistics.median(one for one, _ in several), 6),
                "of_pruned": round(statistics.median(other for _, other in several), 5),
                "rounds": len(several),
            }
            for name, several in found.items()
            if several
        ],
    }


def table(result: dict) -> str:
    """Markdown."""
    lines = ["| selection | % of the dense prefill | % of the prefill after it | both, % of dense |"]
    lines.append("|---|---:|---:|---:|")
    for row in result["rows"]:
        both = 100 * (row["of_dense"] + result["prefill"])
        lines.append(f"| {row['policy']} | {100 * row['of_dense']:.2f} | {100 * row['of_pruned']:.1f} | {both:.1f} |")
    flops, layers = result["flops"], result["layers"]
    lines += [
        "",
        f"{result['visual']:,} visual tokens (32 frames of 196 as LLaVA-OneVision has them) cut to {result['kept']:,}, "
        f"and {TEXT} of text; a decoder of the size of LLaVA-OneVision-0.5B's with random weights in bfloat16, of "
        f"whose {layers['counted']} layers {layers['run']} ran and were counted {layers['counted'] // layers['run']} "
        f"times. Prefill after pruning: {100 * result['prefill']:.1f} % of the dense one's time, "
        f"{100 * flops['pruned'] / flops['dense']:.1f} % of its {flops['dense'] / 1e12:.1f} TFLOP. Medians of "
        f"{max(row['rounds'] for row in result['rows'])} rounds in turns, processor time, on {result['machine']}. Taps "
        "in the tower are given, not timed; tokens are made: scenes of 8 frames in which 30 % of the tokens change.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.video_time", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of every measurement")
    parser.add_argument("--layers", type=int, default=4, help="of the decoder that run, a divisor of 24")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of video_time.*")
    given = parser.parse_args()
    at_least(parser, given, rounds=1, layers=1, threads=1)
    if LAYERS % given.layers:
        parser.error(f"--layers {given.layers} is no divisor of {LAYERS}")
    torch.set_num_threads(given.threads)
    result = measure(replace(Size(), run=given.layers), given.rounds, Console(stderr=True), policies())
    publish(given.out, "video_time", indented(result), table(result))


if __name__ == "__main__":
    main()

"""What reading attention costs: `python -m tokenprune.eval.events [--rounds 5] [--threads 1]`.

LLaVAs with random weights, so that only shapes matter, in float32 on the CPU. For every policy inside the language
model: the time of its events (scores, selection, shortening) and of the whole prefill, as shares of the dense prefill
of the same round, and whether `report()` calls an event one that costs more than it saves.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from .. import (
    AdaptInfer,
    FastV,
    HiMAP,
    LayerPolicy,
    PyramidDrop,
    RandomLayers,
    Report,
    SparseVLM,
    debiased,
    wrap,
)
from .clock import machine
from .files import at_least, indented, publish

IMAGE, VOCABULARY, TEXT = 10, 1000, 48
PATCHES = 576
SHAPES = {  # name -> hidden size, layers, tokens of each picture, pictures
    "128 x 4, 256": (128, 4, 256, 1),
    "512 x 8, 576": (512, 8, PATCHES, 1),
    "1024 x 8, 576": (1024, 8, PATCHES, 1),
    "1024 x 8, 2,880": (1024, 8, PATCHES, 5),
}


def policies() -> dict[str, LayerPolicy]:
    """With their published schedules, whose layers are shares of the depth; FastV with a quarter of the tokens."""
    fastv = FastV(layer=2, keep=0.25)
    return {
        "fastv": fastv,
        "debiased(fastv)": debiased(fastv),
        "pyramiddrop": PyramidDrop(),
        "sparsevlm": SparseVLM(),
        "sparsevlm, plus": SparseVLM(version="plus"),
        "himap": HiMAP(),
        "adaptinfer": AdaptInfer(),
        "random-layers": RandomLayers(),
    }


def model(hidden: int, layers: int, tokens: int, pictures: int) -> tuple[LlavaForConditionalGeneration, dict[str, Any]]:
    """A model whose vision tower costs next to nothing, and a prompt for it."""
    torch.manual_seed(0)
    side = round(tokens**0.5)
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=4 * side,
        patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=hidden, intermediate_size=round(2.75 * hidden), num_hidden_layers=layers, vocab_size=VOCABULARY,
        num_attention_heads=max(4, hidden // 64), max_position_embeddings=4096,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=tower, image_token_id=IMAGE, vision_feature_layer=-1)
    made = LlavaForConditionalGeneration(config).eval()
    words = torch.randint(IMAGE + 1, VOCABULARY, (TEXT,))
    ids = torch.cat([words[:8], torch.full((tokens * pictures,), IMAGE), words[8:]])[None]
    pixels = torch.randn(pictures, 3, 4 * side, 4 * side)
    return made, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def seconds(made: LlavaForConditionalGeneration, inputs: dict[str, Any]) -> float:
    begun = time.perf_counter()
    made(**inputs, logits_to_keep=1, use_cache=True)
    return time.perf_counter() - begun


@torch.inference_mode()
def measure(rounds: int, shapes: dict[str, tuple[int, int, int, int]]) -> dict:
    """Medians over rounds, dense and every policy in turns."""
    rows, console = [], Console(stderr=True)
    for name, shape in shapes.items():
        made, inputs = model(*shape)
        tried = policies()
        found: dict[str, list[tuple[float, float, Report]]] = {policy: [] for policy in tried}
        for turn in track(range(rounds + 1), name, console=console):
            whole = seconds(made, inputs)
            for policy, one in tried.items():
                with wrap(made, one, timing=True) as handle:
                    pruned = seconds(made, inputs)
                    if turn:  # first calls pay for what later ones find ready
                        found[policy].append((whole, pruned, handle.report()))
        rows += [_row(name, policy, several) for policy, several in found.items()]
    return {"machine": machine(), "text": TEXT, "rows": rows}


def _row(shape: str, policy: str, several: list[tuple[float, float, Report]]) -> dict:
    """Of the rounds of one policy; times are ratios to the dense prefill, of medians."""
    last, events = several[-1][2], []
    dense = 1e3 * statistics.median(whole for whole, _, _ in several)
    for i, event in enumerate(last.events):
        told = [report.events[i] for _, _, report in several]
        events.append(
            {
                "layer": event.layer,
                "scored": event.scored,
                "kept": event.kept,
                "took": round(statistics.median(one.event_ms for one in told) / dense, 5),
                "saved": round(statistics.median(one.saved_ms for one in told) / dense, 5),
                "at_a_loss": sum(one.saved_ms <= one.event_ms for one in told) / len(told),
            }
        )
    shares = [sum(event.event_ms for event in report.events) / (1e3 * whole) for whole, _, report in several]
    return {
        "shape": shape,
        "policy": policy,
        "events": round(statistics.median(shares), 5),
        "prefill": round(statistics.median(pruned / whole for whole, pruned, _ in several), 4),
        "flops": round(last.cost()["prefill_flops_pruned"] / last.cost()["prefill_flops_dense"], 4),
        "by_event": events,
    }


def table(result: dict) -> str:
    """Markdown: events, and the whole prefill, as shares of the dense prefill."""
    by = {(row["policy"], row["shape"]): row for row in result["rows"]}
    names = list(dict.fromkeys(shape for _, shape in by))
    lines = ["| events · prefill · FLOPs, % of dense | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for policy in dict.fromkeys(policy for policy, _ in by):
        cells = []
        for name in names:
            row = by[policy, name]
            losing = sum(event["at_a_loss"] > 0.5 for event in row["by_event"])
            said = f" ({losing} of {len(row['by_event'])} at a loss)" if losing else ""
            cells.append(f"{100 * row['events']:.2f} · {100 * row['prefill']:.0f} · {100 * row['flops']:.0f}{said}")
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    note = (
        "Columns: hidden size x layers of the decoder, visual tokens (2,880 in five pictures); "
        f"{result['text']} words, float32, batch 1. Median of the rounds, in turns with dense ones, on "
        f"{result['machine']}. At a loss: events of which `report()` says, in most rounds, that they cost more than "
        "they save."
    )
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.events", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of every measurement")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder for events.json and .md")
    given = parser.parse_args()
    at_least(parser, given, rounds=1, threads=1)
    torch.set_num_threads(given.threads)
    result = measure(given.rounds, SHAPES)
    publish(given.out, "events", indented(result), table(result))


if __name__ == "__main__":
    main()

"""Accuracy of every policy at every budget on held-out scenes: `python -m tokenprune.eval.accuracy [--scenes 1000]`.

Images are encoded once; a policy then sees the same features in every configuration. Answers are one word, so the first
generated token decides, which is checked against `generate` on the first batch.
"""

import argparse
import hashlib
import json
import platform
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .. import CDPruner, CDPrunerOpenVINO, ClipRelevance, DivPrune, Handle, Policy, Pool, Random, Uniform, wrap
from . import shapes
from .shapes.evaluate import majority

KEEPS = (0.5, 0.25, 0.11, 0.05)
BATCH = 50
DENSE = "dense"


@dataclass
class Batch:
    """Questions about scenes as the model reads them; `features`: what `get_image_features` says about the images."""

    samples: list[shapes.Sample]
    inputs: dict[str, torch.Tensor]
    pixels: torch.Tensor
    features: tuple[torch.Tensor, ...]
    answers: torch.Tensor


def configurations(clip: tuple | None, seeds: int) -> dict[str, list[Policy]]:
    """Rows of the table: policies without a budget, several where the mean over seeds counts."""
    rows: dict[str, list[Policy]] = {"cdpruner": [CDPruner()]}
    if clip is not None:
        model, tokenizer = clip
        for sign, name in ((1, "cdpruner, CLIP (sign +1)"), (-1, "cdpruner, CLIP (sign -1)")):
            rows[name] = [CDPruner(relevance=ClipRelevance(clip=model, tokenizer=tokenizer, sign=sign))]
    return rows | {
        "cdpruner-openvino": [CDPrunerOpenVINO()],
        "divprune": [DivPrune()],
        "pool": [Pool()],
        "uniform": [Uniform()],
        "random": [Random(seed=seed) for seed in range(seeds)],
    }


def encoded(model, processor, samples: list[shapes.Sample]) -> Iterator[Batch]:
    """Batches with their images through the tower and the projector."""
    for start in range(0, len(samples), BATCH):
        some = samples[start : start + BATCH]
        text = [shapes.prompt(one.question.text) for one in some]
        inputs = processor(text=text, images=[one.image for one in some], padding=True, return_tensors="pt")
        pixels = inputs.pop("pixel_values").to(model.dtype)
        features = model.get_image_features(pixel_values=pixels).pooler_output
        answers = [processor.tokenizer.convert_tokens_to_ids(one.question.answer) for one in some]
        yield Batch(some, dict(inputs), pixels, tuple(features), torch.tensor(answers))


def first_words(model, batch: Batch, handle: Handle | None = None) -> torch.Tensor:
    """[B] first answer tokens. The tower runs again only for a policy that looks into it."""
    inputs = dict(batch.inputs)
    if handle is not None and "instruction" in handle.policies[0].needs:
        handle.instruction = [one.question.text for one in batch.samples]
    looks_inside = handle is not None and "encoder" in handle.policies[0].needs
    if looks_inside or not shapes.takes_features(model):
        inputs["pixel_values"] = batch.pixels
    else:
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=list(batch.features))}
    return model(**inputs, logits_to_keep=1).logits[:, -1].argmax(-1)


def check_against_generate(model, processor, batch: Batch) -> None:
    """The short cut must give the words that `generate` gives.

    Raises:
        RuntimeError: it does not.
    """
    images, questions = [one.image for one in batch.samples], [one.question.text for one in batch.samples]
    words = shapes.answer(model, processor, images, questions, BATCH)
    ids = processor.tokenizer.convert_tokens_to_ids(words)
    if ids != first_words(model, batch).tolist():
        raise RuntimeError("the first token of a forward is not the first word that generate() answers.")


def count(model, batches: list[Batch], policy: Policy | None, keep: float) -> tuple[Counter, int]:
    """Correct answers by kind, and visual tokens kept per image."""
    correct, kept = Counter(), len(batches[0].features[0])
    with nullcontext() if policy is None else wrap(model, policy, keep=keep) as handle:
        for batch in batches:
            right = first_words(model, batch, handle) == batch.answers
            correct.update(one.question.kind for one, good in zip(batch.samples, right.tolist(), strict=True) if good)
        if handle is not None:
            kept = handle.report().units[0].kept
    return correct, kept


@torch.inference_mode()
def measure(scenes: int, seeds: int, clip: bool) -> dict:
    """Everything, as plain numbers."""
    model, processor = shapes.load()
    samples = list(shapes.held_out(scenes))
    asked = Counter(one.question.kind for one in samples)
    rows = configurations(shapes.load_clip() if clip else None, seeds)
    runs = [(DENSE, None, 1.0)]
    runs += [(name, policy, keep) for name, several in rows.items() for keep in KEEPS for policy in several]
    results: dict[tuple[str, float], list[Counter]] = {}
    tokens: dict[float, int] = {}
    with Progress(console=Console(stderr=True)) as progress:
        encoding = progress.add_task("encoding images", total=len(samples))
        batches = []
        for batch in encoded(model, processor, samples):
            batches.append(batch)
            progress.advance(encoding, len(batch.samples))
        check_against_generate(model, processor, batches[0])
        answering = progress.add_task("answering", total=len(runs))
        for name, policy, keep in runs:
            correct, tokens[keep] = count(model, batches, policy, keep)
            results.setdefault((name, keep), []).append(correct)
            progress.advance(answering)
    guessed = sum(right for right, _ in majority(samples).values())
    return {
        "scenes": len(samples),
        "asked": dict(sorted(asked.items())),
        "majority": guessed / len(samples),
        "tokens": {str(keep): n for keep, n in tokens.items()},
        "rows": [row(name, keep, counts, asked) for (name, keep), counts in results.items()],
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "transformers", "tokenprune-vlm")},
            "checkpoint": hashlib.sha256((shapes.CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()[:16],
        },
    }


def row(name: str, keep: float, counts: list[Counter], asked: Counter) -> dict:
    """One configuration: mean over seeds, and the standard deviation between them where there are several."""
    shares = [correct.total() / asked.total() for correct in counts]
    return {
        "policy": name,
        "keep": keep,
        "accuracy": statistics.fmean(shares),
        "std": statistics.stdev(shares) if len(shares) > 1 else None,
        "seeds": len(shares),
        "by_kind": {kind: sum(one[kind] for one in counts) / n / len(counts) for kind, n in sorted(asked.items())},
    }


def table(result: dict) -> str:
    """Accuracy by policy and budget, in Markdown."""
    by = {(one["policy"], one["keep"]): one for one in result["rows"]}
    dense, tokens = by[DENSE, 1.0]["accuracy"], result["tokens"]
    names = dict.fromkeys(name for name, _ in by if name != DENSE)
    heads = [f"{keep:.0%} ({tokens[str(keep)]})" for keep in KEEPS]
    lines = ["| policy | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(KEEPS)]
    best = {keep: max(round(by[name, keep]["accuracy"], 3) for name in names) for keep in KEEPS}
    for name in names:
        cells = []
        for keep in KEEPS:
            one = by[name, keep]
            cell = f"{100 * one['accuracy']:.1f}"
            cell = f"**{cell}**" if round(one["accuracy"], 3) == best[keep] else cell
            cells.append(cell if one["std"] is None else f"{cell} ± {100 * one['std']:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    error = 100 * (dense * (1 - dense) / result["scenes"]) ** 0.5
    seeds = max(one["seeds"] for one in result["rows"])
    lines += [
        "",
        f"Accuracy in % on {result['scenes']} held-out scenes, one question each. Dense ({tokens['1.0']} tokens): "
        f"{100 * dense:.1f}; always the commonest answer of each kind: {100 * result['majority']:.1f}. `random`: mean "
        f"and standard deviation of {seeds} seeds. Sampling error of the dense figure: ± {error:.1f}, of 50 %: "
        f"± {50 / result['scenes'] ** 0.5:.1f}.",
    ]
    return "\n".join(lines) + "\n"


def kinds_table(result: dict, keep: float) -> str:
    """Accuracy by kind of question at one budget, in Markdown."""
    kinds = list(result["asked"])
    lines = [f"| at {keep:.0%} | " + " | ".join(kinds) + " |", "|---|" + "---:|" * len(kinds)]
    for one in result["rows"]:
        if one["keep"] in (keep, 1.0):
            lines.append(
                f"| {one['policy']} | " + " | ".join(f"{100 * one['by_kind'][kind]:.0f}" for kind in kinds) + " |"
            )
    return "\n".join(lines) + "\n"


def plot(result: dict, path: Path) -> None:
    """Accuracy over the share of tokens kept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["rows"]
    dense = next(one["accuracy"] for one in rows if one["policy"] == DENSE)
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    axes.axhline(100 * dense, color="#1f2328", linestyle="--", linewidth=1)
    axes.axhline(100 * result["majority"], color="#8c959f", linestyle=":", linewidth=1)
    axes.text(KEEPS[-1], 100 * dense + 0.8, f"dense {100 * dense:.1f}", fontsize=9, color="#1f2328")
    axes.text(KEEPS[-1], 100 * result["majority"] + 0.8, "without looking", fontsize=9, color="#8c959f")
    colors = dict(
        zip(("cdpruner", "divprune", "pool", "uniform"), ("#cf222e", "#0969da", "#8250df", "#1a7f37"), strict=True)
    )
    styles = iter([("#fb8f44", "s"), ("#bf3989", "D"), ("#bf8700", "v"), ("#1b7c83", "^")])
    for name in dict.fromkeys(one["policy"] for one in rows if one["policy"] != DENSE):
        color, marker = (
            (colors[name], "o") if name in colors else ("#656d76", "x") if name == "random" else next(styles)
        )
        points = [
            (one["keep"], 100 * one["accuracy"], 100 * (one["std"] or 0)) for one in rows if one["policy"] == name
        ]
        x, y, spread = zip(*sorted([*points, (1.0, 100 * dense, 0.0)]), strict=True)
        axes.errorbar(
            x,
            y,
            yerr=spread if any(spread) else None,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.6,
            capsize=3,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks([*KEEPS, 1.0], [f"{keep:.0%}\n{result['tokens'][str(keep)]}" for keep in (*KEEPS, 1.0)])
    axes.minorticks_off()
    axes.set(xlabel="visual tokens kept", ylabel=f"accuracy on {result['scenes']} scenes, %")
    axes.grid(color="#d0d7de", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000, help="held-out scenes, one question each")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the random policy")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder for accuracy.json, .md and .png")
    parser.add_argument("--no-clip", action="store_true", help="leave out the rows with CLIP relevance")
    arguments = parser.parse_args()
    for name in ("scenes", "seeds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)} is below 1")
    result = measure(arguments.scenes, arguments.seeds, clip=not arguments.no_clip)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n".join([table(result), *(kinds_table(result, keep) for keep in KEEPS)])
    (arguments.out / "accuracy.md").write_text(text)
    plot(result, arguments.out / "accuracy.png")
    Console().print(Markdown(text))


if __name__ == "__main__":
    main()

"""What AD-TP's predictors learn on a sentence encoder: `python -m tokenprune.eval.learned.adtp --out eval/results`.

all-MiniLM-L6-v2 on the reference manual of Python: both predictors are trained on some of its topics, without labels,
and compared on others with choices that need no training. Two measures: how near the embedding of a paragraph's tokens
that stay is to that of the whole, and how often one half of a paragraph finds its other half among those of all
paragraphs, where both are pruned. With --train the predictors are made anew, and written to --predictor.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from ...learn.adtp import SaliencyRecipe, train_adtp
from ...learn.loop import Plan
from ...learn.text import paragraphs
from ...policies.texts import ADTP, EncoderPolicy, TextFirst, TextNorm, TextRandom
from ...predictors import SaliencyPredictor
from ...wrap import wrap
from ..clock import machine
from ..files import publish, read, written
from .encoder_model import NAME, load_encoder
from .encoder_oracles import Attribution, FirstAttention

PREDICTOR = Path(__file__).parent / "adtp_minilm"
SHARES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)
RECIPE, STEPS, RATE = SaliencyRecipe(), 520, 2e-3
SEEDS, BATCH = 3, 14
WAYS = {
    "adtp": "TSP's saliencies",
    "random": f"at random, mean of {SEEDS} seeds",
    "first": "the first tokens, as truncation",
    "norm": "largest norm of the input embedding",
    "attention": "most attention received in the first block, which computes it of the whole text",
    "attribution": "largest integrated gradients, m = 1, which cost a forward and a backward of the whole text: what "
    "TSP is trained towards",
}


def halves(text: str) -> tuple[str, str]:
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def pieces(texts: Sequence[str]) -> list[str]:
    """Paragraphs and their halves."""
    return [piece for text in texts for piece in (text, *halves(text))]


class Encoder:
    """Sentence embeddings, [n, D] of unit length, and what they cost."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def embedded(self, texts: Sequence[str], policy: EncoderPolicy | None = None) -> tuple[Tensor, dict[str, int]]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found, counts = {}, {"tokens": 0, "kept": 0, "flops_dense": 0, "flops_pruned": 0}
        with nullcontext() if policy is None else wrap(self.model, policy) as handle:
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                inputs = self.tokenizer([texts[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
                hidden, mask = self.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
                found |= zip(rows, F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1), strict=True)
                if handle is not None:
                    report = handle.report()
                    for name, value in {"tokens": report.total, "kept": sum(report.kept), **report.cost()}.items():
                        counts[name] += value
        return torch.stack([found[i] for i in range(len(texts))]), counts


def measured(encoder: Encoder, texts: Sequence[str], dense: Tensor, policy: EncoderPolicy | None) -> dict[str, Any]:
    """Of every paragraph the cosine, how often its halves find each other and 1 / the rank; shares of tokens, FLOPs."""
    whole, counts = (dense, None) if policy is None else encoder.embedded(texts, policy)
    first, second = (encoder.embedded(side, policy)[0] for side in zip(*map(halves, texts), strict=True))
    alike = torch.stack([first @ second.T, second @ first.T])
    ranks = 1 + (alike > alike.diagonal(dim1=1, dim2=2)[..., None]).sum(-1)  # [2, n]
    found = {"cosines": (whole * dense).sum(1).tolist(), "kept": 1.0, "flops": 1.0}
    found |= {"right": (ranks == 1).float().mean(0).tolist(), "ranks": (1 / ranks).mean(0).tolist()}
    if counts is not None:
        found["kept"] = counts["kept"] / counts["tokens"]
        found["flops"] = counts["flops_pruned"] / counts["flops_dense"]
    return found


def ways(predictor: SaliencyPredictor, model: Any, share: float) -> dict[str, list[EncoderPolicy]]:
    """Name -> policies that keep a share, several where the mean over them counts; model: one that is not wrapped."""
    return {
        "adtp": [ADTP(predictor=predictor, ratio=share)],
        "random": [TextRandom(ratio=share, seed=seed) for seed in range(SEEDS)],
        "first": [TextFirst(ratio=share)],
        "norm": [TextNorm(ratio=share)],
        "attention": [FirstAttention(ratio=share, model=model)],
        "attribution": [Attribution(ratio=share, model=model)],
    }


def compared(encoder: Encoder, predictor: SaliencyPredictor, texts: Sequence[str]) -> list[dict[str, Any]]:
    dense, spare = encoder.embedded(texts)[0], copy.deepcopy(encoder.model)

    def row(way: str, share: float | None, policies: Sequence[EncoderPolicy | None]) -> dict[str, Any]:
        several = [measured(encoder, texts, dense, policy) for policy in policies]
        means = {key: _mean([one[key] for one in several]) for key in several[0]}
        lists = {"cosine": "cosines", "top1": "right", "mrr": "ranks"}
        told = {name: statistics.fmean(means[one]) for name, one in lists.items()}
        return {"way": way, "share": share, **_rounded({**told, **means})}

    cells = [(way, share, some) for share in SHARES[1:] for way, some in ways(predictor, spare, share).items()]
    cells = [("dense", 1.0, [None]), ("adtp", 1.0, [ADTP(predictor=predictor, ratio=1.0)]), *cells]
    cells.append(("adtp", None, [ADTP(predictor=predictor)]))
    rows = [row(*cell) for cell in track(cells, "compare", console=Console(stderr=True))]
    alike = rows[-1]["kept"]  # the same number of tokens, the same share of every text
    rows.append(row("adtp, alike", alike, [ADTP(predictor=predictor, ratio=alike)]))
    return rows


def _mean(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [statistics.fmean(one) for one in zip(*values, strict=True)]
    return statistics.fmean(values)


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        key: [round(one, 4) for one in value] if isinstance(value, list) else round(value, 4)
        for key, value in facts.items()
    }


def difference(rows: list[dict], share: float, way: str, key: str) -> tuple[float, float]:
    """Mean over texts of what `adtp` is above another way, and its standard error."""
    mine, other = (next(r[key] for r in rows if (r["share"], r["way"]) == (share, name)) for name in ("adtp", way))
    apart = [a - b for a, b in zip(mine, other, strict=True)]
    return statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(len(apart))


def table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    cell = {(one["way"], one["share"]): one for one in rows}
    dense, chosen, alike = cell["dense", 1.0], cell["adtp", None], rows[-1]
    lines = [
        f"# AD-TP on {result['model']}",
        "",
        f"`python -m tokenprune.eval.learned.adtp`: {result['texts']} paragraphs of `pydoc_data.topics` that nothing "
        f"was trained on, {result['tokens']:.0f} tokens each on average; halves of them for retrieval (dense: "
        f"{dense['top1']:.1%} of halves find their other half among {result['texts']}, mean of 1 / rank "
        f"{dense['mrr']:.3f}). {result['versions']}; "
        f"{result['machine']}.",
    ]
    for title, key, told in (
        ("Cosine to the embedding of the whole paragraph", "cosine", lambda one: f"{one:.3f}"),
        ("One half finds the other, both pruned", "top1", lambda one: f"{one:.1%}"),
        ("Mean of 1 / rank of the other half, both pruned", "mrr", lambda one: f"{one:.3f}"),
    ):
        lines += ["", f"## {title}", "", f"| tokens kept | {' | '.join(f'{share:.0%}' for share in SHARES[1:])} |"]
        lines.append(f"|---|{'---:|' * len(SHARES[1:])}")
        for way in WAYS:
            lines.append(f"| {way} | {' | '.join(told(cell[way, share][key]) for share in SHARES[1:])} |")
    flops = ", ".join(f"{share:.0%}: {cell['adtp', share]['flops']:.1%}" for share in SHARES[1:])
    lines += ["", *(f"- {name}: {what}." for name, what in WAYS.items()), ""]
    lines += [f"FLOPs of adtp, its own included, as a share of the dense encoder's: {flops}.", ""]
    lines += ["What adtp is above others, mean over paragraphs ± standard error:", ""]
    rivals = [way for way in WAYS if way != "adtp"]
    lines += [f"| | tokens kept | {' | '.join(rivals)} |", f"|---|---|{'---|' * len(rivals)}"]
    for name, key, by, digits in (
        ("cosine", "cosines", 1, 3),
        ("points found", "right", 100, 1),
        ("1 / rank", "ranks", 1, 3),
    ):
        for share in SHARES[1:]:
            pairs = (difference(rows, share, way, key) for way in rivals)
            told = " | ".join(f"{by * mean:+.{digits}f} ± {by * error:.{digits}f}" for mean, error in pairs)
            lines.append(f"| {name} | {share:.0%} | {told} |")
    lines += [
        "",
        f"ARP's own choice keeps {chosen['kept']:.1%} of the tokens ({chosen['flops']:.1%} of the FLOPs): cosine "
        f"{chosen['cosine']:.3f}, {chosen['top1']:.1%} found. With that share of every paragraph instead: cosine "
        f"{alike['cosine']:.3f}, {alike['top1']:.1%} found.",
    ]
    if facts := result["training"]:
        lines += [
            "",
            f"Training: {facts['of']} texts, {facts['steps']} steps in {facts['seconds']:.0f} s, with the attribution "
            f"before it {facts['whole_seconds']:.0f} s on one thread; {facts['parameters']:,} parameters.",
        ]
    return "\n".join([*lines, ""])


def trained(encoder: Encoder, steps: int, rate: float) -> tuple[SaliencyPredictor, dict[str, Any]]:
    plan, texts, started = Plan(steps=steps, rate=rate), pieces(paragraphs("train")), time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        about = {"plan": plan, "recipe": RECIPE, "data": "pydoc topics, train"}
        predictor, facts = train_adtp(encoder.model, encoder.tokenizer, texts, Path(work), **about)
    return predictor, {**facts, "whole_seconds": round(time.perf_counter() - started, 1)}


def main(given: Sequence[str] | None = None, load: Callable[[], tuple] = load_encoder) -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.learned.adtp", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of learned_adtp.*")
    parser.add_argument("--predictor", type=Path, default=PREDICTOR, help="folder of the trained predictors")
    parser.add_argument("--train", action="store_true", help="train anew, and write --predictor")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training")
    parser.add_argument("--rate", type=float, default=RATE, help="of learning, the highest")
    parser.add_argument("--texts", type=int, help="paragraphs to compare on; all without it")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    encoder = Encoder(*load())
    if options.train:
        predictor, training = trained(encoder, options.steps, options.rate)
        predictor.save_pretrained(options.predictor)
    else:
        training = (read(options.out / "learned_adtp.json") or {}).get("training", {})
    predictor = SaliencyPredictor.from_pretrained(options.predictor)
    texts = paragraphs("test")[: options.texts]
    lengths = [len(ids) for ids in encoder.tokenizer(texts, truncation=True)["input_ids"]]
    result = {
        "model": NAME,
        "texts": len(texts),
        "tokens": round(statistics.fmean(lengths), 1),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")),
        "machine": machine(),
        "training": training,
        "rows": compared(encoder, predictor, texts),
    }
    publish(options.out, "learned_adtp", written(result), table(result))


if __name__ == "__main__":
    main()

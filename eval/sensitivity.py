"""How well the closed form of ZOO-Prune's sensitivity replaces the estimate: `python -m tokenprune.eval.sensitivity`.

Compared with the published estimate (64 random directions, step 0.01, central differences) on the embedded model's
projector and pictures, and on two random projectors of other kinds. What a second set of directions gives is the
measure of what can be asked for: the estimate does not agree better with itself.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger

from ..policies import ZooPrune
from ..projection import Mlp, Projection
from ..tokens import VisualTokens
from . import shapes
from .clock import machine

KEEPS = (0.25, 0.11)
RANDOM = 5  # units of random features
REFERENCE = ZooPrune(estimator="zeroth_order")
OTHERS = {
    "closed form": ZooPrune(estimator="closed_form"),
    "other directions": ZooPrune(estimator="zeroth_order", seed=1),
    "norm": ZooPrune(estimator="norm"),
}


@dataclass
class Case:
    """A projector and what enters it, [G, N, P, d_v]."""

    name: str
    project: Callable[[Tensor], Tensor]
    mlp: Mlp
    encoder: Tensor

    def tokens(self) -> VisualTokens:
        projection = Projection(apply=self.project, exact=self.project, mlp=lambda: self.mlp)
        return VisualTokens(features=self.project(self.encoder), encoder=self.encoder, projection=projection)


def embedded(pictures: int) -> Case:
    """The embedded model's projector (Linear, GELU, Linear) on held-out scenes."""
    model, processor = shapes.load()
    projector, entered = model.model.multi_modal_projector, []
    hook = projector.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    images = [sample.image for sample in shapes.held_out(pictures)]
    model.get_image_features(pixel_values=processor.image_processor(images, return_tensors="pt")["pixel_values"])
    hook.remove()
    first, last = projector.linear_1, projector.linear_2
    mlp = Mlp(w1=first.weight, b1=first.bias, w2=last.weight, b2=last.bias, act=projector.act)
    return Case("embedded model", lambda x: projector(x.flatten(-2)), mlp, entered[0][:, :, None])


def gated(units: int, tokens: int = 256, width: int = 256, hidden: int = 512) -> Case:
    """A random SwiGLU unit."""
    draw = torch.Generator().manual_seed(0)
    w1, gate = (torch.randn(hidden, width, generator=draw) / width**0.5 for _ in range(2))
    w2 = torch.randn(width, hidden, generator=draw) / hidden**0.5
    mlp = Mlp(w1=w1, gate=gate, w2=w2, act=F.silu)
    return Case("random SwiGLU", mlp, mlp, _features(units, tokens, 1, width, draw))


def merger(units: int, tokens: int = 256, width: int = 320, out: int = 512) -> Case:
    """Qwen2.5-VL's merger with random weights: RMSNorm of each of four patches, Linear, GELU, Linear."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Qwen2_5_VLPatchMerger(out, width).eval()
    draw = torch.Generator().manual_seed(0)
    norm, (first, act, last) = module.ln_q, module.mlp
    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=draw)
    for linear in (first, last):  # as large as its inputs need, so that the activation is used where it bends
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=draw)
    mlp = Mlp(
        w1=first.weight, b1=first.bias, w2=last.weight, b2=last.bias, act=act, norm="rms", norm_weight=norm.weight
    )
    return Case(
        "random Qwen2.5-VL merger",
        lambda x: module(x.reshape(-1, width)).view(*x.shape[:-2], out),
        mlp,
        _features(units, tokens, 4, width, draw),
    )


def _features(units: int, tokens: int, patches: int, width: int, draw: torch.Generator) -> Tensor:
    """Random features with what towers' have: tokens of different size, near to each other, a few channels large."""
    channels = torch.randn(width, generator=draw).exp()
    size = (0.4 * torch.randn(units, tokens, 1, 1, generator=draw)).exp()
    own = torch.randn(units, tokens, patches, width, generator=draw)
    return channels * size * (own + torch.randn(units, tokens, 1, width, generator=draw)) / 2


def ranks(values: Tensor) -> Tensor:
    return values.argsort(-1).argsort(-1).double()


def spearman(a: Tensor, b: Tensor) -> list[float]:
    """Rank correlation of each unit, [G, N] and [G, N]."""
    both = torch.stack([ranks(a), ranks(b)])
    return F.cosine_similarity(*(both - both.mean(-1, keepdim=True)), dim=-1).tolist()


@dataclass(kw_only=True)
class Given(ZooPrune):
    """The policy on sensitivities that are known already."""

    values: Tensor

    def quality(self) -> Callable[[VisualTokens], Tensor]:
        return lambda tokens: self.values


def overlap(a: Tensor, b: Tensor, tokens: VisualTokens, k: int) -> float:
    """Share of the tokens kept with sensitivities a that are kept with b, too; mean over units."""
    kept = [Given(values=values).select(tokens, k).source_map(tokens.shape[1]) >= 0 for values in (a, b)]
    return float((kept[0] & kept[1]).sum() / kept[0].sum())


def seconds(policy: ZooPrune, tokens: VisualTokens) -> float:
    """Of one estimate for all units."""
    begun = time.perf_counter()
    policy.quality()(tokens)
    return time.perf_counter() - begun


def compare(case: Case, repeats: int) -> dict:
    """One row of the table per estimator."""
    tokens, closed = case.tokens(), OTHERS["closed form"]
    first = seconds(closed, tokens)  # makes the matrices
    reference = REFERENCE.quality()(tokens)
    rounds = [(seconds(REFERENCE, tokens), seconds(closed, tokens)) for _ in range(repeats)]  # in turns
    rows = {}
    for name, policy in OTHERS.items():
        values = policy.quality()(tokens)
        found = spearman(values, reference)
        shared = {str(keep): overlap(reference, values, tokens, round(keep * tokens.shape[1])) for keep in KEEPS}
        rows[name] = {"spearman": statistics.fmean(found), "spearman_lowest": min(found), "overlap": shared}
    return {
        "case": case.name,
        "shape": list(case.encoder.shape),
        "rows": rows,
        "ratio": statistics.median(one / other for one, other in rounds),
        "ratio_first_call": statistics.median(one / first for one, _ in rounds),
    }


def cases(units: int) -> Iterator[Case]:
    yield embedded(units)
    yield gated(min(units, RANDOM))
    yield merger(min(units, RANDOM))


@torch.inference_mode()
def measure(units: int, repeats: int) -> dict:
    """Everything, as plain numbers."""
    return {"machine": machine(), "units": units, "cases": [compare(case, repeats) for case in cases(units)]}


def table(result: dict) -> str:
    """Agreement with the published estimate, and its time as a multiple of the closed form's, in Markdown."""
    heads = " | ".join(f"kept at {keep:.0%}" for keep in KEEPS)
    lines = [
        f"| projector | instead of the estimate | Spearman (lowest) | {heads} | time |",
        "|---|---|---:|" + "---:|" * (len(KEEPS) + 1),
    ]
    for case in result["cases"]:
        for name, one in case["rows"].items():
            cells = [f"{100 * one['overlap'][str(keep)]:.1f} %" for keep in KEEPS]
            time = f"1/{case['ratio']:.0f}" if name == "closed form" else ""
            cells = [case["case"], name, f"{one['spearman']:.3f} ({one['spearman_lowest']:.3f})", *cells, time]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Against 64 directions with step 0.01: rank correlation of the sensitivities, share of the tokens kept by "
        "both, time as a share of the estimate's, without the matrices made once per model. Means of "
        f"{result['units']} pictures, or of {RANDOM} units of random features, 256 tokens each. {result['machine']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.sensitivity", description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=20, help="pictures")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, in turns")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder for sensitivity.json")
    arguments = parser.parse_args()
    for name in ("units", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)} is below 1")
    result = measure(arguments.units, arguments.repeats)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sensitivity.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(Markdown(table(result)))


if __name__ == "__main__":
    main()

"""Why attention can choose worse than chance: `python -m tokenprune.eval.weights_inside [--scenes 500]`.

The check of `eval.weights` for policies inside the language model: from the layer that they leave, every kept token
weighs as many as it stands for, by the log of that number on its attention logits. What accuracy comes back was lost by
weight. Besides: what share of the tokens kept lies on objects, and what a drop in a later layer changes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from torch import Tensor

from .. import FastV, LayerPolicy, LayerTokens, Policy, RandomLayers, Selection, wrap
from ..adapters import lookup, supported
from ..layers import Attention, Event
from ..stages.parts import find_parts
from . import shapes
from .asking import Batch, Way, encoded
from .inside import ALONE, BEHIND, inside_rows
from .weights import cluster_sizes

FRONT = "uniform"
MERGING = "sparsevlm"  # its answers are made of other rows, not of fewer
OTHERWISE = ("pyramiddrop", "adaptinfer")  # rows with the other positions, too
LATER = (2, 3)  # layers that tokens leave in the rows with a later drop


@dataclass(kw_only=True)
class Noted(LayerPolicy):
    """Answers what another policy answers, and notes places.

    Attributes:
        policy: the other one.
        places: [G, N] before the first event, and [G, k] after each.
    """

    policy: LayerPolicy
    places: list[Tensor] = field(default_factory=list)
    keep: int | float | None = 1.0

    positions = property(lambda self: self.policy.positions)

    def events(self, depth: int) -> tuple[Event, ...]:
        return self.policy.events(depth)

    def count(self, event: Event, total: int) -> int:
        return self.policy.count(event, total)

    def raters(self, x: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        return self.policy.raters(x, visual, text)

    def score(self, attention: Attention, event: Event) -> Tensor:
        return self.policy.score(attention, event)

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        chosen = self.policy.select(tokens, k)
        self.places += [] if self.places else [tokens.place]
        self.places.append(tokens.place.gather(1, chosen.indices))
        return chosen


def kept_places(model, processor, policies: list[Policy], batch: Batch, positions=None) -> list[tuple[int, Tensor]]:
    """(layer, [B, k] places in the picture of what it reads) wherever that changes; the first is layer 0."""
    *front, inside = policies
    noted, dense = Noted(policy=inside), Way(model, processor)
    with wrap(model, [*front, noted], positions=positions) as handle:
        dense.words(dense.encoded(batch, 1.0))
        return list(zip([0, *(event.layer for event in handle.report().events)], noted.places, strict=True))


def last_logits(model, batch: Batch, i: int, left: dict[int, Tensor], *, weighted: bool, compact: bool) -> Tensor:
    """[V] of the first answer token of sample i: the decoder layer by layer, with tokens leaving by hand.

    Args:
        left: layer -> [B, k] places of what it reads, as `kept_places` has them.
        weighted: kept tokens weigh their sizes instead of 1.
        compact: what is left inside the decoder is renumbered.
    """
    decoder, real = model.model.language_model, batch.inputs["attention_mask"][i].bool()
    ids, features = batch.inputs["input_ids"][i, real], batch.features[i]
    place = (ids == model.config.image_token_id).nonzero()[:, 0]
    x = model.get_input_embeddings()(ids).index_copy(0, place, features)[None]
    there = position = torch.arange(len(ids))
    for number, layer in enumerate(decoder.layers):
        if number in left:
            kept = left[number][i]
            keep = torch.ones(len(ids), dtype=torch.bool).index_fill(0, place, False).index_fill(0, place[kept], True)
            stay = keep[there]
            x, there, position = x[:, stay], there[stay], position[stay]
            if compact and number:
                position = torch.arange(len(there))
            weight = torch.zeros(len(ids))
            if weighted:
                weight[place[kept]] = cluster_sizes(features, kept).log()
        mask = torch.full((len(there), len(there)), -torch.inf).triu(1) + weight[there]
        around = decoder.rotary_emb(x, position[None])
        x = layer(x, attention_mask=mask[None, None], position_ids=position[None], position_embeddings=around)
    return model.lm_head(decoder.norm(x)[0, -1])


def rows(model) -> dict[tuple[str, float], tuple[list[Policy], str]]:
    """(name, budget) -> policies, and positions of tokens left inside: the accuracy table's alone and behind one in
    front, alone with the other positions where tokens leave often, and later drops of as many."""
    shape, total = find_parts(model, lookup, supported()).decoder_shape(), model.config.image_seq_length
    found: dict[tuple[str, float], tuple[list[Policy], str]] = {}
    for name, (one, *_) in inside_rows(seeds=1).items():
        front = name.rpartition(" + ")[0]
        if front in ("", FRONT) and one.row != MERGING:
            for keep in one.keeps((*ALONE, *BEHIND)):
                found[name, keep] = one.policies(keep, shape, total), one.policy.positions
    for name in OTHERWISE:
        policies, positions = found[name, ALONE[0]]
        positions = "original" if positions == "compact" else "compact"
        found[f"{name}, positions {positions}", ALONE[0]] = policies, positions
    left = found["fastv", ALONE[0]][0][0].keep
    for layer in LATER:
        found[f"fastv, layer {layer}", ALONE[0]] = [FastV(layer=layer, keep=left)], "original"
        control = RandomLayers(layers=(layer,), keeps=(left,))
        found[f"random-layers, layer {layer}", ALONE[0]] = [control], "original"
    return found


@torch.inference_mode()
def measure(scenes: int) -> dict:
    """Accuracy with both weights, and how many of the tokens left at the end lie on objects, by row and budget."""
    model, processor = shapes.load()
    batches = list(encoded(model, processor, list(shapes.held_out(scenes))))
    asked, found, console = sum(len(batch.samples) for batch in batches), [], Console(stderr=True)
    objects = [
        torch.stack([torch.from_numpy(one.scene.owner).flatten() >= 0 for one in batch.samples]) for batch in batches
    ]
    for (name, keep), (policies, positions) in track(rows(model).items(), "answering", console=console):
        right, on_objects = {"plain": 0, "weighted": 0}, 0.0
        for batch, owned in zip(batches, objects, strict=True):
            own = policies[-1].positions
            left = dict(kept_places(model, processor, policies, batch, None if positions == own else positions))
            for which in right:
                options = {"weighted": which == "weighted", "compact": positions == "compact"}
                for i, answer in enumerate(batch.answers.tolist()):
                    right[which] += int(last_logits(model, batch, i, left, **options).argmax()) == answer
            last = left[max(left)]
            on_objects += float(owned.gather(1, last).float().mean(1).sum())
        shares = {which: number / asked for which, number in right.items()}
        found.append({"row": name, "keep": keep, **shares, "on objects": on_objects / asked})
    natural = float(torch.cat(objects).float().mean())
    return {"scenes": asked, "on objects": natural, "rows": found}


def table(result: dict) -> str:
    """Markdown: plain and weighted accuracy, and the share of kept tokens that lie on objects."""
    by = {(row["row"], row["keep"]): row for row in result["rows"]}
    budgets = sorted({keep for _, keep in by}, reverse=True)
    lines = ["| inside | " + " | ".join(f"{keep:.0%}" for keep in budgets) + " |", "|---|" + "---:|" * len(budgets)]
    for name in dict.fromkeys(name for name, _ in by):
        cells = []
        for keep in budgets:
            row = by.get((name, keep))
            cells.append(
                f"{100 * row['plain']:.1f} → {100 * row['weighted']:.1f} ({row['on objects']:.0%})" if row else ""
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    note = (
        f"Accuracy in % on {result['scenes']} held-out scenes, every token weighing one → weighing as many as it "
        "stands for; in brackets the share of places left in the last layer that lie on objects "
        f"({result['on objects']:.0%} in the whole image). Layers 2 and 3: as many tokens left as by `fastv` at 50 %, "
        "later. `pyramiddrop` and `adaptinfer` renumber what is left (compact), the others keep original positions."
    )
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.weights_inside", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes, one question each")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder for weights_inside.json and .md")
    arguments = parser.parse_args()
    if arguments.scenes < 1:
        parser.error(f"--scenes {arguments.scenes} is below 1")
    result = measure(arguments.scenes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "weights_inside.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "weights_inside.md").write_text(table(result))
    Console().print(Markdown(table(result)))


if __name__ == "__main__":
    main()

"""Why chosen tokens can lose to random ones: `python -m tokenprune.eval.weights [--scenes 500]`.

A softmax over fewer tokens is another average. Random subsets keep the proportions of the image, so the average stays
about right; a choice of what differs or matters drops what is redundant, which here is most of the background, and the
few tokens left weigh as if the image consisted of them. The check: give every kept token the weight of the tokens that
are nearest to it (cosine of projected features), and every merged token that of those it was made of, by adding the log
of their number to its attention logits, and change nothing else. What accuracy comes back was lost by weight, not by
information.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from .. import Policy, ProjectorPolicy, Selection, VisualTokens
from ..ops import unit_norm
from . import shapes
from .accuracy import KEEPS
from .asking import Batch, Pruned, encoded
from .files import at_least, indented, publish
from .rows import configurations


def projector_policies() -> dict[str, Policy]:
    """Rows of the accuracy table that `wrap` runs."""
    rows = configurations(shapes.load_clip(), seeds=1)
    return {name: several[0] for name, several in rows.items() if several[0].stage == "projector"}


@dataclass(kw_only=True)
class Noted(ProjectorPolicy):
    """Answers what another policy answers, and notes it.

    Attributes:
        policy: the other one.
        answers: its selections.
    """

    policy: ProjectorPolicy
    answers: list[Selection] = field(default_factory=list)

    @property
    def needs(self) -> frozenset:
        return self.policy.needs

    def rate(self, tokens: VisualTokens) -> Tensor | None:
        return self.policy.rate(tokens)

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        self.answers.append(self.policy.select(tokens, k))
        return self.answers[-1]


@dataclass
class Kept:
    """What is left of one picture.

    Attributes:
        indices: [k] long, its places.
        rows: [k, D], what stands there.
        sizes: [k], how many tokens each stands for.
    """

    indices: Tensor
    rows: Tensor
    sizes: Tensor


def kept_tokens(model, processor, policy: ProjectorPolicy, batch: Batch, keep: float) -> list[Kept]:
    """Of every question of a batch."""
    noted = Noted(policy=policy)
    ways = Pruned(model, processor, noted)
    with ways.at(keep, batch):
        ways.words(ways.encoded(batch, keep))
    found = []
    for chosen in noted.answers:
        for i, indices in enumerate(chosen.indices):
            features = batch.features[len(found)]
            if chosen.features is None:
                found.append(Kept(indices, features[indices], cluster_sizes(features, indices)))
            else:
                found.append(Kept(indices, chosen.features[i], chosen.sizes[i]))
    return found


def cluster_sizes(features: Tensor, kept: Tensor) -> Tensor:
    """[k] how many of [N, D] tokens are nearest to each of the kept ones, themselves included."""
    x = unit_norm(features)
    return (x @ x[kept].T).argmax(-1).bincount(minlength=len(kept)).clamp_min(1)


def first_word(model, batch: Batch, i: int, kept: Kept, *, weighted: bool) -> int:
    """First answer token of sample i on a prompt shortened by hand, kept tokens weighing their sizes or 1."""
    real = batch.inputs["attention_mask"][i].bool()
    ids = batch.inputs["input_ids"][i, real]
    place = (ids == model.config.image_token_id).nonzero()[:, 0]
    left = place[kept.indices]
    x = model.get_input_embeddings()(ids).index_copy(0, left, kept.rows)
    keep = torch.ones(len(ids), dtype=torch.bool).index_fill(0, place, False).index_fill(0, left, True)
    weight = torch.zeros(len(ids))
    if weighted:
        weight[left] = kept.sizes.log()
    at = keep.nonzero()[:, 0]
    mask = torch.full((len(at), len(at)), -torch.inf).triu(1) + weight[at]
    out = model.model.language_model(
        inputs_embeds=x[at][None], position_ids=at[None], attention_mask=mask[None, None], use_cache=False
    )
    return int(model.lm_head(out.last_hidden_state[0, -1]).argmax())


@torch.inference_mode()
def measure(scenes: int) -> dict:
    """Accuracy with both weights, and how many tokens on objects are kept, by policy and budget."""
    model, processor = shapes.load()
    batches = list(encoded(model, processor, list(shapes.held_out(scenes))))
    asked = sum(len(batch.samples) for batch in batches)
    on_objects = [torch.from_numpy(one.scene.owner).flatten() >= 0 for batch in batches for one in batch.samples]
    policies, rows = projector_policies(), []
    runs = [(name, keep) for name in policies for keep in KEEPS]
    for name, keep in track(runs, "answering", console=Console(stderr=True)):
        right, objects, count, scene_objects = {"plain": 0, "weighted": 0}, 0, 0, iter(on_objects)
        for batch in batches:
            for i, kept in enumerate(kept_tokens(model, processor, policies[name], batch, keep)):
                for which in right:
                    word = first_word(model, batch, i, kept, weighted=which == "weighted")
                    right[which] += word == batch.answers[i]
                objects += int(next(scene_objects)[kept.indices].sum())
                count += len(kept.indices)
        shares = {which: int(number) / asked for which, number in right.items()}
        rows.append({"policy": name, "keep": keep, **shares, "on objects": objects / count})
    natural = sum(int(one.sum()) for one in on_objects) / sum(len(one) for one in on_objects)
    return {"scenes": asked, "on objects": natural, "rows": rows}


def table(result: dict) -> str:
    """Markdown: plain and weighted accuracy, and the share of kept tokens that lie on objects."""
    by = {(row["policy"], row["keep"]): row for row in result["rows"]}
    lines = ["| policy | " + " | ".join(f"{keep:.0%}" for keep in KEEPS) + " |", "|---|" + "---:|" * len(KEEPS)]
    for name in dict.fromkeys(name for name, _ in by):
        cells = []
        for keep in KEEPS:
            row = by[name, keep]
            cells.append(f"{100 * row['plain']:.1f} → {100 * row['weighted']:.1f} ({row['on objects']:.0%})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    note = (
        f"Accuracy in % on {result['scenes']} held-out scenes, every token weighing one → weighing as many as it "
        f"stands for; in brackets the share of places kept that lie on objects ({result['on objects']:.0%} in the "
        "whole image)."
    )
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.weights", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes, one question each")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder for weights.json and .md")
    arguments = parser.parse_args()
    at_least(parser, arguments, scenes=1)
    result = measure(arguments.scenes)
    publish(arguments.out, "weights", indented(result), table(result))


if __name__ == "__main__":
    main()

"""Why diverse tokens can lose to random ones: `python -m tokenprune.eval.weights [--scenes 500]`.

A softmax over fewer tokens is another average. Random subsets keep the proportions of the image, so the average stays
about right; a diverse subset drops what is redundant, which here is most of the background, and the few tokens left
weigh as if the image consisted of them. The check: give every kept token the weight of the tokens that are nearest to
it (cosine of projected features), by adding the log of their number to its attention logits, and change nothing else.
What accuracy comes back was lost by weight, not by information.
"""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from torch import Tensor

from .. import Policy
from ..ops import unit_norm
from . import shapes
from .accuracy import KEEPS
from .asking import Batch, Pruned, encoded
from .rows import configurations


def projector_policies() -> dict[str, Policy]:
    """Rows of the accuracy table that `wrap` runs."""
    rows = configurations(shapes.load_clip(), seeds=1)
    return {name: several[0] for name, several in rows.items() if several[0].stage == "projector"}


def subsets(ways: Pruned, batches: list[Batch], keep: float) -> list[list[Tensor]] | None:
    """Tokens kept, by batch and sample; None where tokens are merged, which then have weights of their own."""
    chosen = []
    for batch in batches:
        with ways.at(keep, batch):
            ways.words(ways.encoded(batch, keep))
            units = ways.report().units
        if any(int((unit.source >= 0).sum()) > len(unit.indices) for unit in units):
            return None
        chosen.append([unit.indices for unit in units])
    return chosen


def cluster_sizes(features: Tensor, kept: Tensor) -> Tensor:
    """[k] how many of [N, D] tokens are nearest to each of the kept ones, themselves included."""
    x = unit_norm(features)
    return (x @ x[kept].T).argmax(-1).bincount(minlength=len(kept)).clamp_min(1)


def first_word(model, batch: Batch, i: int, kept: Tensor, sizes: Tensor | None) -> int:
    """First answer token of sample i on a prompt shortened by hand, kept tokens weighing `sizes` or 1."""
    real = batch.inputs["attention_mask"][i].bool()
    ids = batch.inputs["input_ids"][i, real]
    place = (ids == model.config.image_token_id).nonzero()[:, 0]
    x = model.get_input_embeddings()(ids).index_copy(0, place, batch.features[i])
    keep = torch.ones(len(ids), dtype=torch.bool).index_fill(0, place, False).index_fill(0, place[kept], True)
    weight = torch.zeros(len(ids))
    if sizes is not None:
        weight[place[kept]] = sizes.log()
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
        right, objects, kept = {"plain": 0, "weighted": 0}, 0, 0
        chosen = subsets(Pruned(model, processor, policies[name]), batches, keep)
        if chosen is None:
            continue
        scene_objects = iter(on_objects)
        for batch, selection in zip(batches, chosen, strict=True):
            for i, indices in enumerate(selection):
                sizes = cluster_sizes(batch.features[i], indices)
                right["plain"] += first_word(model, batch, i, indices, None) == batch.answers[i]
                right["weighted"] += first_word(model, batch, i, indices, sizes) == batch.answers[i]
                objects += int(next(scene_objects)[indices].sum())
                kept += len(indices)
        shares = {which: int(count) / asked for which, count in right.items()}
        rows.append({"policy": name, "keep": keep, **shares, "on objects": objects / kept})
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
        f"Accuracy in % on {result['scenes']} held-out scenes, every token weighing one → weighing its cluster; in "
        f"brackets the share of kept tokens that lie on objects ({result['on objects']:.0%} in the whole image)."
    )
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.weights", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes, one question each")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder for weights.json and .md")
    arguments = parser.parse_args()
    if arguments.scenes < 1:
        parser.error(f"--scenes {arguments.scenes} is below 1")
    result = measure(arguments.scenes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "weights.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "weights.md").write_text(table(result))
    Console().print(Markdown(table(result)))


if __name__ == "__main__":
    main()

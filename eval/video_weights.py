"""Why chosen tokens of clips can lose to random ones: `python -m tokenprune.eval.video_weights [--clips 100]`.

What `eval.weights` asks about pictures: every kept token is given the weight of the tokens that are nearest to it
(cosine), and every merged token that of those it was made of, by adding the log of their number to its attention
logits. And all of it with original and with compact positions, in which the time of a token is lost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from .. import ProjectorPolicy
from . import shapes
from .files import at_least, indented, publish
from .video_asking import VideoBatch, encoded
from .video_rows import Row, video_rows
from .weights import Kept, kept_tokens

POSITIONS = ("original", "compact")
KEEPS = (0.25, 0.1)


def first_word(model, batch: VideoBatch, i: int, kept: Kept, *, weighted: bool, compact: bool) -> int:
    """First answer token of sample i on a prompt shortened by hand, kept tokens weighing their sizes or 1."""
    real = batch.inputs["attention_mask"][i].bool()
    ids = batch.inputs["input_ids"][i, real]
    place = (ids == model.config.video_token_id).nonzero()[:, 0]
    visual = place[: batch.total]
    left = visual[kept.indices]
    x = model.get_input_embeddings()(ids).index_copy(0, place, batch.encoding.pooler_output[i])
    x = x.index_copy(0, left, kept.rows)
    keep = torch.ones(len(ids), dtype=torch.bool).index_fill(0, visual, False).index_fill(0, left, True)
    weight = torch.zeros(len(ids))
    if weighted:
        weight[left] = kept.sizes.log()
    at = keep.nonzero()[:, 0]
    mask = torch.full((len(at), len(at)), -torch.inf).triu(1) + weight[at]
    positions = torch.arange(len(at)) if compact else at
    out = model.model.language_model(
        inputs_embeds=x[at][None], position_ids=positions[None], attention_mask=mask[None, None], use_cache=False
    )
    return int(model.lm_head(out.last_hidden_state[0, -1]).argmax())


@torch.inference_mode()
def measure(clips: int, policies: dict[str, ProjectorPolicy], console: Console) -> dict:
    """Accuracy by policy, budget, positions and weights."""
    model, processor = shapes.load_video()
    batches = list(encoded(model, processor, list(shapes.held_out_clips(clips)), list(policies.values())))
    asked, rows = sum(len(batch.samples) for batch in batches), []
    for name, keep in track([(name, keep) for name in policies for keep in KEEPS], "answering", console=console):
        right = {(positions, weighted): 0 for positions in POSITIONS for weighted in (False, True)}
        for batch in batches:
            for i, kept in enumerate(kept_tokens(model, processor, policies[name], batch, keep)):
                for positions, weighted in right:
                    word = first_word(model, batch, i, kept, weighted=weighted, compact=positions == "compact")
                    right[positions, weighted] += word == int(batch.answers[i])
        shares = {
            f"{positions}, {'weighted' if weighted else 'plain'}": round(count / asked, 4)
            for (positions, weighted), count in right.items()
        }
        rows.append({"policy": name, "keep": keep, "own": policies[name].positions, **shares})
    return {"clips": asked, "rows": rows}


def table(result: dict) -> str:
    """Markdown: plain and weighted accuracy with either kind of positions."""
    by = {(row["policy"], row["keep"]): row for row in result["rows"]}
    heads = " | ".join(f"{keep:.0%}, {positions}" for keep in KEEPS for positions in POSITIONS)
    lines = [f"| policy (its positions) | {heads} |", "|---|" + "---:|" * len(KEEPS) * len(POSITIONS)]
    for name in dict.fromkeys(name for name, _ in by):
        cells = []
        for keep in KEEPS:
            row = by[name, keep]
            cells += [f"{100 * row[f'{one}, plain']:.0f} → {100 * row[f'{one}, weighted']:.0f}" for one in POSITIONS]
        lines.append(f"| {name} ({by[name, KEEPS[0]]['own']}) | " + " | ".join(cells) + " |")
    note = (
        f"Accuracy in % on {result['clips']} held-out clips, every token weighing one → weighing as many as it stands "
        "for, with original positions and with compact ones."
    )
    return "\n".join([*lines, "", note]) + "\n"


def rows() -> dict[str, ProjectorPolicy]:
    found: dict[str, Row] = video_rows(1)
    return {name: row.policies[0] for name, row in found.items() if row.group == "exact"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.video_weights", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100, help="held-out clips, one question each")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of video_weights.*")
    given = parser.parse_args()
    at_least(parser, given, clips=1, threads=1)
    torch.set_num_threads(given.threads)
    result = measure(given.clips, rows(), Console(stderr=True))
    publish(given.out, "video_weights", indented(result), table(result))


if __name__ == "__main__":
    main()

"""What the visual tokens look like: `python -m tokenprune.eval.shapes.stats [--checkpoint DIR] [--scenes N]` -> JSON.

Whether a test bed says anything about real models depends on these figures (are backgrounds redundant, are objects
spread over several similar tokens, are there attention sinks), so they are measured and published instead of assumed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from .heldout import Sample, held_out
from .inference import CHECKPOINT, load, prompt
from .modeling import PREFIX, VISUAL

OUTLIER = 3.0  # a token is a norm outlier above this multiple of its image's median norm


def cosines(tokens: torch.Tensor, owner: np.ndarray) -> dict[str, float]:
    """Mean cosine between tokens [VISUAL, d] by what the two lie on; a token is never paired with itself."""
    owner = torch.from_numpy(owner.reshape(-1))
    unit = F.normalize(tokens.float(), dim=-1)
    similar, on = unit @ unit.T, owner >= 0
    both, mixed, same = on[:, None] & on, on[:, None] ^ on, owner[:, None] == owner
    different = ~torch.eye(len(owner), dtype=torch.bool)
    groups = {
        "within an object": both & same & different,
        "between two objects": both & ~same,
        "within the background": ~on[:, None] & ~on & different,
        "object to background": mixed,
        "all pairs": different,
    }
    return {name: similar[pairs].mean().item() for name, pairs in groups.items()}


def effective_rank(tokens: torch.Tensor) -> float:
    """exp(entropy of the normalised singular values) of tokens [VISUAL, d] (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(tokens.float())
    share = values / values.sum()
    return torch.exp(torch.special.entr(share).sum()).item()


def norms(tokens: torch.Tensor) -> dict[str, float]:
    """Largest norm as a multiple of the median, and the share of outliers."""
    ratio = tokens.float().norm(dim=-1)
    ratio = ratio / ratio.median()
    return {"largest over median": ratio.max().item(), "share of outliers": (ratio > OUTLIER).float().mean().item()}


def attention(tower: tuple[torch.Tensor, ...], decoder: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Sinks, from attention maps [heads, queries, keys] per layer.

    Tower: what the most attended patch receives from all queries, as a multiple of the uniform share.
    Decoder: what the last prompt token gives to <bos>, to all visual tokens, and to the most attended one of them.
    """
    found = {}
    for layer, weights in enumerate(tower, 1):
        received = weights.float().mean((0, 1))
        found[f"tower layer {layer}: to CLS"] = received[0].item()
        found[f"tower layer {layer}: most attended patch, times uniform"] = (received[1:].max() * len(received)).item()
    for layer, weights in enumerate(decoder, 1):
        last = weights.float().mean(0)[-1]
        found[f"decoder layer {layer}: last token to <bos>"] = last[0].item()
        found[f"decoder layer {layer}: last token to visual"] = last[1:PREFIX].sum().item()
        found[f"decoder layer {layer}: last token to the most attended visual"] = last[1:PREFIX].max().item()
    return found


@torch.inference_mode()
def statistics(model: PreTrainedModel, processor: ProcessorMixin, scenes: int) -> dict:
    """Means over held-out scenes of every figure above. The model must run eager attention, which returns its maps."""
    rows = [_measure(model, processor, sample) for sample in held_out(scenes)]
    width = model.config.text_config.hidden_size
    return {"scenes": scenes, "visual tokens": VISUAL, "width": width, **_mean(rows)}


def _measure(model: PreTrainedModel, processor: ProcessorMixin, sample: Sample) -> dict:
    inputs = processor(text=prompt(sample.question.text), images=sample.image, return_tensors="pt")
    tower = model.model.vision_tower(inputs["pixel_values"], output_attentions=True)
    out = model(**inputs, output_attentions=True)
    row = {"patches on objects": float((sample.scene.owner >= 0).mean())}
    tokens = {"projected": out.image_hidden_states.reshape(VISUAL, -1), "tower": tower.last_hidden_state[0, 1:]}
    for name, values in tokens.items():
        row[name] = {
            "cosine": cosines(values, sample.scene.owner),
            "effective rank": effective_rank(values),
            "norm": norms(values),
        }
    return row | {"attention": attention([a[0] for a in tower.attentions], [a[0] for a in out.attentions])}


def _mean(rows: list) -> dict | float:
    """Mean of nested dictionaries of numbers, key by key; the few NaN (no two patches to compare) are left out."""
    if isinstance(rows[0], dict):
        return {key: _mean([row[key] for row in rows]) for key in rows[0]}
    return round(float(np.nanmean(rows)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.shapes.stats", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=200)
    arguments = parser.parse_args()
    model, processor = load(folder=arguments.checkpoint)
    model.set_attn_implementation("eager")
    found = json.dumps(statistics(model, processor, arguments.scenes), indent=1)
    (arguments.checkpoint / "statistics.json").write_text(found + "\n")
    print(found)


if __name__ == "__main__":
    main()

"""A text tower for the embedded model's vision tower, trained contrastively and saved as a standard `CLIPModel`.

`python -m tokenprune.eval.shapes.clip --checkpoint DIR` reads the trained model in DIR and writes DIR/clip. The tower
is copied and stays frozen. Two contrastive terms: the pooled image against the caption of its scene (as CLIP), and the
patches of the objects that a question names against all other patches of that image, so that question relevance can
be read off single patches: cos(visual_projection(post_layernorm(patch)), text_projection(pooled question)).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, PreTrainedModel

from .data import IDS, encode
from .inference import load
from .language import BOS, EOS, PAD, WORDS, tokenizer
from .modeling import pixel_values
from .questions import COLOR_NAMES, KINDS, Question, ask, plural
from .scenes import SHAPES, Item, Scene, scene, stream

LAYERS, HEADS, LENGTH = 2, 4, 77  # of the text tower; LENGTH is CLIP's own context
BATCH, QUESTIONS, STEPS, RATE = 32, 8, 150, 2e-3
FIRST_SCENE = 900_000_000  # of the train split; beyond every stage of the main training
NAMING = tuple(kind for kind in KINDS if kind not in ("count", "extreme"))  # kinds whose questions name objects
SINGULAR = {form: shape for shape in SHAPES for form in (shape, plural(shape))}


def named(question: str, items: Sequence[Item]) -> list[int]:
    """Indices of the items that a text names by shape, colour or both; empty if it names none that is there."""
    words = question.lower().replace("?", "").split()
    shapes, colors = {SINGULAR[w] for w in words if w in SINGULAR}, {w for w in words if w in COLOR_NAMES}
    if not shapes and not colors:
        return []
    return [
        index
        for index, item in enumerate(items)
        if (not shapes or item.shape in shapes) and (not colors or item.color in colors)
    ]


def named_patches(question: str, drawn: Scene) -> np.ndarray:
    """bool [VISUAL]: patches of the named objects."""
    return np.isin(drawn.owner.reshape(-1), named(question, drawn.items))


def build(model: PreTrainedModel) -> CLIPModel:
    """A CLIP around a copy of the model's vision tower, text side and both projections untrained."""
    vision = model.config.vision_config
    text = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=vision.hidden_size,
        intermediate_size=4 * vision.hidden_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        projection_dim=vision.hidden_size,
        pad_token_id=IDS[PAD],
        bos_token_id=IDS[BOS],
        eos_token_id=IDS[EOS],
    )
    sides = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    clip = CLIPModel(CLIPConfig(**sides, projection_dim=vision.hidden_size))
    clip.vision_model.load_state_dict(model.model.vision_tower.state_dict())
    clip.vision_model.requires_grad_(False)
    return clip


def features(clip: CLIPModel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors in the joint space: pooled image [B, c] and patches [B, VISUAL, c]."""
    hidden = clip.vision_model(pixels).last_hidden_state
    joint = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(hidden)).float(), dim=-1)
    return joint[:, 0], joint[:, 1:]


def texts(clip: CLIPModel, rows: Sequence[list[int]]) -> torch.Tensor:
    """Unit vectors [len(rows), c] of token id lists without special tokens."""
    rows = [[IDS[BOS], *row, IDS[EOS]] for row in rows]
    ids = torch.full((len(rows), max(map(len, rows))), IDS[PAD])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    # padding stands behind the pooled end token, where causal attention cannot see it: no mask is needed
    return F.normalize(clip.get_text_features(input_ids=ids).pooler_output.float(), dim=-1)


def _questions(drawn: Scene, rng: np.random.Generator) -> list[Question]:
    """QUESTIONS questions about a scene that name at least one object that is there."""
    found: list[Question] = []
    while len(found) < QUESTIONS:
        question = ask(drawn.items, NAMING[rng.integers(len(NAMING))], rng)
        if question and named(question.text, drawn.items):
            found.append(question)
    return found


def loss(clip: CLIPModel, number: int) -> torch.Tensor:
    """The two contrastive terms on batch `number`."""
    rngs = [stream("train", FIRST_SCENE + number * BATCH + i) for i in range(BATCH)]
    scenes = [scene(rng) for rng in rngs]
    captions = [encode(" ".join(f"{o.color} {o.shape}" for o in drawn.items)) for drawn in scenes]
    asked = [_questions(drawn, rng) for drawn, rng in zip(scenes, rngs, strict=True)]
    marks = [[named_patches(q.text, drawn) for q in some] for drawn, some in zip(scenes, asked, strict=True)]
    on_object = torch.from_numpy(np.array(marks))  # [B, QUESTIONS, VISUAL]
    pixels = pixel_values(torch.from_numpy(np.stack([drawn.image for drawn in scenes])))

    scale = clip.logit_scale.exp().clamp(max=100)
    image, patches = features(clip, pixels)
    text = texts(clip, [*captions, *(encode(q.text) for some in asked for q in some)])
    whole = scale * image @ text[:BATCH].T
    pairs = torch.arange(BATCH)
    pooled = (F.cross_entropy(whole, pairs) + F.cross_entropy(whole.T, pairs)) / 2

    scores = scale * text[BATCH:].unflatten(0, (BATCH, QUESTIONS)) @ patches.mT  # [B, QUESTIONS, VISUAL]
    others = scores.masked_fill(on_object, float("-inf")).logsumexp(-1, keepdim=True)
    each = (F.softplus(others - scores) * on_object).sum(-1) / on_object.sum(-1).clamp(min=1)
    return pooled + each.mean()


@torch.inference_mode()
def relevance_auc(clip: CLIPModel, scenes: int = 300) -> dict[str, float]:
    """How well cos(patch, question) finds the patches of the named objects: mean AUC by kind of question.

    0.5 is chance; a value below it means that relevance has a negative sign, as CDPruner found for OpenAI's CLIP.
    """
    found: dict[str, list[float]] = {}
    for seed in range(scenes):
        rng = stream("test", seed)
        drawn = scene(rng)
        pixels = pixel_values(torch.from_numpy(drawn.image.copy())[None])
        patches = features(clip, pixels)[1][0]
        for question in _questions(drawn, rng):
            score = patches @ texts(clip, [encode(question.text)])[0]
            inside = torch.from_numpy(named_patches(question.text, drawn))
            found.setdefault(question.kind, []).append(auc(score, inside))
    means = {kind: float(np.mean(values)) for kind, values in found.items()}
    return means | {"all": float(np.mean([value for values in found.values() for value in values]))}


def auc(score: torch.Tensor, positive: torch.Tensor) -> float:
    """Chance that a positive scores above a negative, ties half."""
    above = score[positive][:, None] - score[~positive][None]
    return ((above > 0).float() + 0.5 * (above == 0).float()).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.shapes.clip", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the trained model; writes its clip/")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    clip = build(load(folder=arguments.checkpoint)[0])
    moving = [parameter for parameter in clip.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=arguments.steps, pct_start=0.1)
    for number in track(range(arguments.steps), "contrastive training"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(clip, number)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        schedule.step()
        if number % 100 == 99:
            print(f"{number + 1}/{arguments.steps}  loss {value.item():.3f}", flush=True)
    clip.eval().to(torch.bfloat16).save_pretrained(arguments.checkpoint / "clip")
    tokenizer(f"{BOS} $A {EOS}", padding_side="right").save_pretrained(arguments.checkpoint / "clip")
    print({kind: round(value, 3) for kind, value in relevance_auc(clip.float()).items()})


if __name__ == "__main__":
    main()

"""Every policy once, configured: the list that parametrises the generic tests. A new policy adds one line."""

from functools import partial

import torch

from tokenprune.policies import CDPruner, CDPrunerOpenVINO, DivPrune, NoPruning, Pool, Random, Uniform
from tokenprune.tokens import VisualTokens

# name -> factory; call it with keep=... (and per=..., rounding=...)
POLICIES = {
    "none": NoPruning,
    "random": partial(Random, seed=1),
    "uniform": Uniform,
    "pool": Pool,
    "divprune": DivPrune,
    "divprune-pre-merger": partial(DivPrune, features="pre_merger"),
    "cdpruner": CDPruner,
    "cdpruner-theta": partial(CDPruner, theta=0.5),
    "cdpruner-openvino": CDPrunerOpenVINO,
    "cdpruner-openvino-full": partial(CDPrunerOpenVINO, split=False),
}


def visual_tokens(features, *, grid=None, seed=0, **fields) -> VisualTokens:
    """Everything a policy may ask for around [G, N, D] features; the text has 3 words, the last one padding."""
    g, _, d = features.shape
    generator = torch.Generator().manual_seed(seed)
    text_mask = torch.tensor([True, True, False]).expand(g, 3)
    text = torch.randn(g, 3, d, generator=generator) * text_mask[..., None]
    defaults = {
        "encoder": torch.randn(*features.shape[:2], 2, 5, generator=generator),
        "text": text.to(features.dtype),
        "text_mask": text_mask,
        "instruction": [f"question {i}" for i in range(g)],
        "image": torch.arange(g),
        "keys": list(range(g)),
    }
    return VisualTokens(features=features, grid=grid, **(defaults | fields))


def unit(tokens: VisualTokens, i: int) -> VisualTokens:
    """Unit i alone."""
    return VisualTokens(
        features=tokens.features[i : i + 1],
        encoder=tokens.encoder[i : i + 1],
        text=tokens.text[i : i + 1],
        text_mask=tokens.text_mask[i : i + 1],
        instruction=tokens.instruction[i : i + 1],
        grid=tokens.grid,
        image=tokens.image[i : i + 1],
        keys=tokens.keys[i : i + 1],
    )

"""Every policy once, configured: the list that parametrises the generic tests. A new policy adds one line."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn import functional as F

from tokenprune.policies import (
    DART,
    EVS,
    TRIM,
    CDPruner,
    CDPrunerOpenVINO,
    CoViPAL,
    DivPrune,
    DyCoke,
    FasterVLM,
    FastVID,
    FrameClassToken,
    HiPrune,
    HoliTom,
    HoloV,
    MMTok,
    NoPruning,
    Norm,
    Pool,
    PruMerge,
    PruMergePlus,
    PruneVid,
    Random,
    Uniform,
    UniformFrames,
    VidCom2,
    VisionZip,
    VisPruner,
    ZooPrune,
)
from tokenprune.predictors import PruningModule
from tokenprune.projection import Mlp, Projection
from tokenprune.tokens import Tap, VisualTokens


class AnyWidth(PruningModule):
    """Of random weights, for features of any width: what a trained one does, without training one per family."""

    def __init__(self):
        super().__init__(width=8, hidden=8, layers=1, heads=2)

    def forward(self, features, text, text_mask, grid=None):
        def folded(x):
            return F.adaptive_avg_pool1d(x.float().flatten(0, 1)[:, None], 8)[:, 0].view(*x.shape[:2], 8)

        return super().forward(folded(features), folded(text), text_mask, grid)


def covipal(**given):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CoViPAL(predictor=AnyWidth(), **given)


# name -> factory; call it with keep=... (and per=..., rounding=...)
POLICIES = {
    "none": NoPruning,
    "random": partial(Random, seed=1),
    "uniform": Uniform,
    "pool": Pool,
    "norm": Norm,
    "divprune": DivPrune,
    "divprune-pre-merger": partial(DivPrune, features="pre_merger"),
    "cdpruner": CDPruner,
    "cdpruner-theta": partial(CDPruner, theta=0.5),
    "cdpruner-openvino": CDPrunerOpenVINO,
    "cdpruner-openvino-full": partial(CDPrunerOpenVINO, split=False),
    "covipal": covipal,
    "dart": DART,
    "mmtok": MMTok,
    "holov": HoloV,
    "hiprune": partial(HiPrune, alpha=0.5),
    "hiprune-strict": partial(HiPrune, alpha=1.0, strict_paper=True),
    "fastervlm": FasterVLM,
    "vispruner": partial(VisPruner, step=512),  # with the released 8, 16384 tokens take 2000 rounds, a minute
    "visionzip": VisionZip,
    "visionzip-contextual": partial(VisionZip, contextual=4),
    "prumerge": PruMerge,
    "prumerge-plus": PruMergePlus,
    "trim": TRIM,
    "zooprune": ZooPrune,
    "zooprune-zeroth-order": partial(ZooPrune, estimator="zeroth_order"),
    "zooprune-norm": partial(ZooPrune, estimator="norm"),
    "uniform-frames": UniformFrames,
    "evs": EVS,
    "vidcom2": VidCom2,
    "dycoke": DyCoke,
    "prunevid": PruneVid,
    "holitom": partial(HoliTom, tau=0.2),  # so that something of random frames is static
    "fastvid": FastVID,
    "fastvid-sequential": partial(FastVID, form="sequential", tau=0.2, ignore=0.5, c=2, frames=FrameClassToken()),
}


PATCHES, WIDTH, HEADS = 2, 5, 3  # of the tower that `visual_tokens` pretends


@dataclass(frozen=True)
class Tower(Mapping):
    """Answers any tap with [g, n, PATCHES, c] random numbers: a distribution over the patches for attention."""

    g: int
    n: int
    seed: int
    view: Callable[[torch.Tensor], torch.Tensor] = lambda values: values

    def __getitem__(self, tap: Tap) -> torch.Tensor:
        width = {"attention": 1, "keys": 4 * (HEADS if tap.heads == "joined" else 1), "class_token": WIDTH}[tap.what]
        generator = torch.Generator().manual_seed(zlib.crc32(repr(tap).encode(), self.seed))
        values = torch.randn(self.g, self.n, PATCHES, width, generator=generator)
        if tap.what == "attention":
            values = values.flatten(1).softmax(-1).view_as(values)
        if tap.what == "class_token":
            values = values[:, :1, :1].expand_as(values)
        return self.view(values)

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0


def projection(d: int, seed: int = 0) -> Projection:
    """Linear, exact GELU, Linear from PATCHES patches of WIDTH to d."""
    generator = torch.Generator().manual_seed(seed)
    w1, w2 = torch.randn(7, PATCHES * WIDTH, generator=generator), torch.randn(d, 7, generator=generator)
    mlp = Mlp(w1=w1, b1=torch.randn(7, generator=generator), w2=w2, act=F.gelu)
    return Projection(apply=lambda x: mlp(x.float()).to(x.dtype), exact=lambda x: mlp(x.float()), mlp=lambda: mlp)


def visual_tokens(features, *, grid=None, seed=0, **fields) -> VisualTokens:
    """Everything a policy may ask for around [G, N, D] features; the text has 3 words, the last one padding."""
    g, n, d = features.shape
    generator = torch.Generator().manual_seed(seed)
    text_mask = torch.tensor([True, True, False]).expand(g, 3)
    text = torch.randn(g, 3, d, generator=generator) * text_mask[..., None]
    defaults = {
        "encoder": torch.randn(g, n, PATCHES, WIDTH, generator=generator),
        "tower": Tower(g, n, seed),
        "projection": projection(d, seed),
        "text": text.to(features.dtype),
        "text_mask": text_mask,
        "instruction": [f"question {i}" for i in range(g)],
        "image": torch.arange(g),
        "keys": list(range(g)),
    }
    return VisualTokens(features=features, grid=grid, **(defaults | fields))


def unit(tokens: VisualTokens, i: int) -> VisualTokens:
    """Unit i alone."""
    part = slice(i, i + 1)
    names = ("features", "encoder", "text", "text_mask", "instruction", "image", "keys")
    parts = {name: getattr(tokens, name)[part] for name in names}
    return replace(tokens, **parts, tower=_seen(tokens.tower, lambda values: values[part]))


def permuted(tokens: VisualTokens, shuffle: torch.Tensor) -> VisualTokens:
    """The same tokens in another order, [N] long; they form no grid any longer."""
    return replace(taken(tokens, shuffle), grid=None)


def taken(tokens: VisualTokens, index: torch.Tensor) -> VisualTokens:
    """On place i what was at place index[i], [N] long: an index that repeats makes equal tokens."""
    tower = _seen(tokens.tower, lambda values: values[:, index])
    return replace(tokens, features=tokens.features[:, index], encoder=tokens.encoder[:, index], tower=tower)


def without(tokens: VisualTokens, dropped: torch.Tensor) -> VisualTokens:
    """Zero vectors in features and encoder where `dropped`, [G, N] bool."""
    kept = ~dropped[..., None]
    return replace(tokens, features=tokens.features * kept, encoder=tokens.encoder * kept[..., None])


def same_everywhere(tokens: VisualTokens) -> VisualTokens:
    """Every token of a unit has the attention, keys and class token of the first."""
    return replace(tokens, tower=_seen(tokens.tower, lambda values: values[:, :1, :1].expand_as(values)))


def wordless(tokens: VisualTokens) -> VisualTokens:
    """No word of the instruction says anything: the relevance of all tokens is equal."""
    return replace(tokens, text=torch.zeros_like(tokens.text))


def cast(tokens: VisualTokens, dtype: torch.dtype) -> VisualTokens:
    """All that a model would hand over in `dtype`."""
    names = ("features", "encoder", "text")
    return replace(
        tokens,
        **{name: getattr(tokens, name).to(dtype) for name in names},
        tower=_seen(tokens.tower, lambda values: values.to(dtype)),
    )


def _seen(tower: Tower, view: Callable[[torch.Tensor], torch.Tensor]) -> Tower:
    """`view` on top of what the tower shows already."""
    before = tower.view
    return replace(tower, view=lambda values: view(before(values)))


# Policy -> why shuffling its tokens must not shuffle its answer. What is not here has to be equivariant.
BY_PLACE = {
    "none": "keeps all in the order of the sequence",
    "random": "draws places",
    "uniform": "takes places",
    "pool": "averages neighbours on the grid",
    "cdpruner-openvino": "prunes two halves of the sequence",
    "holov": "shares the budget among runs of the sequence",
    "hiprune": "takes the neighbours of anchors on the grid",
    "hiprune-strict": "takes the neighbours of anchors on the grid",
    "visionzip": "takes every so many of the rest, in the order of the sequence, as targets of the merge",
    "visionzip-contextual": "as visionzip",
    "prumerge-plus": "adds places at even steps",
    "uniform-frames": "takes places",
    "evs": "compares frames",
    "covipal": "knows places",
    "vidcom2": "compares frames",
    "dycoke": "compares frames",
    "prunevid": "compares frames",
    "holitom": "compares frames",
    "fastvid": "compares frames",
    "fastvid-sequential": "compares frames",
}
# Policies whose last pick is one token made of all others: it stands at a place that says nothing.
SUMMARY = ("prumerge", "trim")

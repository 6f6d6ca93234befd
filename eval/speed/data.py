"""Made tokens to time and weigh selections on.

A token is a direction common to all, plus the centre of one of 32 clusters, plus noise, all standard normal, so that
any two have a cosine of about 1/3 and two of a cluster about 2/3, as the tokens of pictures have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import Policy, VisualTokens
from ...ops import greedy_coverage, greedy_dpp, greedy_max_min, min_max, plain, unit_norm
from ...projection import Mlp, Projection
from ...tokens import Tap
from ..training_free import training_free

CLUSTERS = 32
WORDS = 32
TOWER = 64  # width of what a policy reads inside the tower that is not there
TEMPERATURE = 0.2  # MMTok's within an image
SELECTORS = ("dpp", "max-min", "facility location")
# Where a default takes very many rounds for very many tokens: VisPruner drops 8 tokens a round.
FASTER = {"vispruner": {"step": 512}}


def features(units: int, n: int, width: int, *, device: Any = "cpu", seed: int = 0) -> Tensor:
    """[units, n, width] float32."""
    drawn = torch.Generator().manual_seed(seed)
    centres = torch.randn(units, CLUSTERS, width, generator=drawn) + torch.randn(units, 1, width, generator=drawn)
    cluster = torch.randint(CLUSTERS, (units, n), generator=drawn)
    noise = torch.randn(units, n, width, generator=drawn)
    return (noise + centres.gather(1, cluster[..., None].expand_as(noise))).to(device)


def quality(units: int, n: int, *, device: Any = "cpu", seed: int = 1) -> Tensor:
    """[units, n] in [0, 1]: a Gaussian, the smallest of a unit moved to 0 and the largest to 1."""
    drawn = torch.Generator().manual_seed(seed)
    return min_max(torch.randn(units, n, generator=drawn)).to(device)


def selections(selector: str, x: Tensor, k: int) -> dict[str, Callable[[], Tensor]]:
    """ "plain" and "public" -> a call that answers [G, k] indices of x [G, N, D] in the order chosen.

    The DPP is CDPruner's, with a quality; max-min is DivPrune's, which looks for its first token; facility location
    covers all tokens by exp((cosine - 1) / 0.2), MMTok's but for its normalisation, and makes columns of unit vectors
    when it is asked for them.
    """
    g, n, _ = x.shape
    if selector == "dpp":
        r = quality(g, n, device=x.device)
        return {"plain": partial(plain.dpp, x, k, quality=r), "public": partial(greedy_dpp, x, k, quality=r)}
    if selector == "max-min":
        return {"plain": partial(plain.max_min, x, k), "public": partial(greedy_max_min, x, k)}
    unit, weight = unit_norm(x), torch.ones(g, n, device=x.device)

    def columns(index: Tensor) -> Tensor:
        picked = unit.gather(1, index[..., None].expand(-1, -1, unit.shape[-1]))
        return (picked @ unit.mT).sub_(1.0).div_(TEMPERATURE).exp_()

    return {
        "plain": partial(plain.coverage, columns, weight, n, k),
        "public": partial(greedy_coverage, columns, weight, n, k),
    }


@dataclass
class Tower(Mapping):
    """What a tower that is not there would say of every token of [g, n]; made when asked, and then kept."""

    g: int
    n: int
    device: Any
    known: dict[Tap, Tensor] = field(default_factory=dict)

    def __getitem__(self, tap: Tap) -> Tensor:
        if tap not in self.known:
            drawn = torch.Generator().manual_seed(2)
            width = {"attention": 1, "keys": TOWER, "class_token": TOWER}[tap.what]
            values = torch.randn(self.g, self.n, 1, width, generator=drawn)
            if tap.what == "attention":
                values = values.softmax(1)
            if tap.what == "class_token":
                values = values[:, :1].expand_as(values)
            self.known[tap] = values.to(self.device)
        return self.known[tap]

    def __iter__(self):
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def visual_tokens(
    units: int, n: int, width: int, *, grid: tuple[int, int, int] | None = None, device: Any = "cpu"
) -> VisualTokens:
    """All that a policy may ask for around `features`: one patch a token, a projector of two layers, 32 words."""
    drawn = torch.Generator().manual_seed(3)
    sizes = {"encoder": (units, n, 1, TOWER), "text": (units, WORDS, width), "w1": (TOWER, TOWER), "w2": (width, TOWER)}
    made = {name: torch.randn(size, generator=drawn).to(device) for name, size in sizes.items()}
    mlp = Mlp(w1=made["w1"] / TOWER**0.5, w2=made["w2"] / TOWER**0.5, act=F.gelu)
    return VisualTokens(
        features=features(units, n, width, device=device), encoder=made["encoder"], text=made["text"],
        text_mask=torch.ones(units, WORDS, dtype=torch.bool, device=device), tower=Tower(units, n, device),
        projection=Projection(apply=mlp, exact=mlp, mlp=lambda: mlp), instruction=["what is this"] * units,
        grid=grid, image=torch.arange(units, device=device), keys=list(range(units)),
    )  # fmt: skip


def ready(policy: Policy, tokens: VisualTokens) -> VisualTokens:
    """The same tokens, once all that the policy reads in the tower is made."""
    for need in policy.needs:
        if isinstance(need, Tap):
            tokens.tower[need]
    return tokens


def projector_policies(kind: str) -> dict[str, Callable[[int], Policy]]:
    """Name -> maker of every policy of ours in front of the language model, by its budget.

    Args:
        kind: "image": those that take images. "video": those that take videos only. None that needs training.
    """
    return {
        name: partial(_made, cls, FASTER.get(name, {}))
        for name, cls in training_free("projector").items()
        if name != "none" and kind == ("image" if "image" in cls.kinds else "video")
    }


def _made(cls: type[Policy], options: dict[str, Any], keep: int) -> Policy:
    return cls(keep=keep, **options)

"""What tests of stage `vision` have in common: policies, and how answers are compared."""

from dataclasses import dataclass

import pytest
import torch

from tests import vision_reference as reference
from tests.probes import snapshot
from tests.vision_towers import BY_NAME, TOWERS
from tokenprune import STA, EViT, RandomBlocks, ToMe
from tokenprune.blocks import Reduction
from tokenprune.policies.vision import VisionPolicy

TOLERANCE = 1e-5
POLICIES = {
    "tome": lambda: ToMe(r=3),
    "tome-plain": lambda: ToMe(r=3, proportional=False),
    "tome-half": lambda: ToMe(keep=0.5),
    "tome-once": lambda: ToMe(r=[0, 12]),
    "evit": lambda: EViT(keep_rate=0.6),
    "evit-dropping": lambda: EViT(keep=9, fuse=False),
    "random": lambda: RandomBlocks(keep=0.5),
    "sta": lambda: STA(r=4),
    "shuffled": lambda: Shuffled(keep=0.5),
    "behind": lambda: Behind(keep=0.5),
}
FEW = [BY_NAME[name] for name in ("clip", "siglip", "dinov3", "videomae", "timm-vit", "timm-eva")]
every_tower = pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.name)
few_towers = pytest.mark.parametrize("tower", FEW, ids=lambda tower: tower.name)


@dataclass(kw_only=True)
class Shuffled(VisionPolicy):
    """All an answer may be: survivors in another order, tokens that are dropped beside others that are added up by
    weights of their own, and sizes that count in later attention."""

    proportional = True

    def counts(self, depth, total, grid=None):
        return [total - (block + 1) * (total // 2) // depth for block in range(depth)]

    def reduce(self, tokens, k):
        (g, n), p = tokens.shape, tokens.prefix
        generator = torch.Generator().manual_seed(tokens.block)
        places = p + torch.stack([torch.randperm(n - p, generator=generator) for _ in range(g)])
        prefix = torch.arange(p).expand(g, p)
        order = torch.cat([prefix, places[:, :k]], 1)
        carrier = torch.arange(p, n).expand(g, -1) % (k + 1)
        carrier = torch.where(carrier == k, -1, p + carrier)
        carrier[:, :k] = p + torch.arange(k)
        source = torch.zeros(g, n, dtype=torch.long).scatter(
            1, torch.cat([prefix, places], 1), torch.cat([prefix, carrier], 1)
        )
        weights = 0.2 + torch.rand(g, n, generator=generator)
        return Reduction(order=order, source=source, weights=weights, average=tokens.block % 2 == 0)


@dataclass(kw_only=True)
class Behind(Shuffled):
    """Behind blocks."""

    behind = True


def suits(tower, name):
    return (tower.has_class or not name.startswith("evit")) and (tower.name == "videomae" or name != "sta")


def blocks_of(tower, model):
    return model.get_submodule(tower.blocks)


def by_hand(tower, model, policy, inputs=None):
    """What the model answers, and the states behind its blocks.

    A plain model reads what its last block answers: there every place has a row, if the policy merges.
    """
    how = {"prefix": tower.prefix, "grid": tower.grid, "restored": None if getattr(policy, "merges", True) else []}
    with reference.reducing(blocks_of(tower, model), policy, **how) as calls:
        return tower.run(model, inputs), calls


def difference(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, (name, found[name].shape, value.shape)
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


def identical(found, expected):
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def everything(model):
    """Of any model, as `probes.snapshot` of those with a config."""
    if hasattr(model, "config"):
        return snapshot(model)
    model.config = type("Config", (), {"to_dict": lambda self: {}})()
    found = snapshot(model)
    del model.config
    for part in found.values():
        part.pop("config", None)
    found["attributes"][""].remove("config")
    found["configs"] = None
    return found

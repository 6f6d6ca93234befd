"""Merging inside the tower of every family, against its stock model whose tokens are averaged in place.

A merged token that counts for its size in attention is the same as so many copies of it. So the reference never
shortens anything: in front of norm2 the members of a group are overwritten with their mean, and the rotary rows of all
of them become those of the one that carries them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tests.families import BY_NAME, FAMILIES, INSTALLED
from tokenprune import UnsupportedPolicyError
from tokenprune.adapters import lookup
from tokenprune.blocks import BlockTokens, Reduction
from tokenprune.policies.vision import VisionPolicy

# Model types whose towers are refused: blocks that are not h + mlp(norm2(h)) with parts of known names (Pixtral, LFM3).
REFUSED = [
    name for name in ("llava-pixtral", "mistral3", "mistral_large4", "lfm3_vl", "lfm3_vl-video") if name in BY_NAME
]
# Older transformers do not hand their blocks the bounds of images, and are refused with a sentence
BOUNDED = {"minimax_m3_vl": (5, 23)}
TOWERS = [
    family
    for family in FAMILIES
    if lookup(family.model_type).towers
    and family.name not in REFUSED
    and BOUNDED.get(family.model_type, INSTALLED) <= INSTALLED
]
NORMS = ("layer_norm2", "layernorm_after", "norm2")


@dataclass(kw_only=True)
class Neighbours(VisionPolicy):
    """Of the first three patches left, the first merges into the second, at every block; none is left out."""

    merges: ClassVar = True
    proportional: ClassVar = True

    def counts(self, depth: int, total: int, grid=None) -> list[int]:
        return [total - min(i + 1, 3) for i in range(depth)]

    def reduce(self, tokens: BlockTokens, k: int) -> Reduction:
        (g, n), p = tokens.shape, tokens.prefix
        order = torch.tensor([i for i in range(n) if i != p]).expand(g, n - 1)
        source = torch.tensor([i - (i > p) for i in range(n)]).expand(g, n)
        return Reduction(order=order, source=source)


@dataclass
class InPlace:
    """The same on a stock tower: hooks that overwrite."""

    prefix: int
    whole: list[int]
    images: list[list[int]] | None = None  # rows of each image in the flat hidden states, in order
    groups: list[list[list[int]]] | None = None  # per image, rows of each token left

    def begin(self, x: Tensor, bounds: Tensor | None) -> None:
        ends = (
            list(range(x.shape[1], x.shape[0] * x.shape[1] + 1, x.shape[1])) if bounds is None else bounds[1:].tolist()
        )
        starts = [0, *ends[:-1]]
        self.images = [list(range(a + self.prefix, b)) for a, b in zip(starts, ends, strict=True)]
        self.groups = [[[row] for row in image] for image in self.images]

    def merge(self, x: Tensor) -> None:
        flat = x.reshape(-1, x.shape[-1])  # which may be a copy
        for groups in self.groups:
            if sum(map(len, groups)) - len(groups) < 3:
                first = groups.pop(0)
                groups[0] = first + groups[0]  # the last of a group carries it
                place = torch.tensor(groups[0])
                where = (place,) if x.ndim == 2 else (place // x.shape[1], place % x.shape[1])
                x[where] = flat[place].mean(0)

    def table(self, table: Tensor) -> Tensor:
        """A rotary table of all rows of a packed tower."""
        table = table.clone(memory_format=torch.contiguous_format)
        for groups in self.groups:
            for group in groups:
                table[group] = table[group[-1]].clone()
        return table


def watch(tower: nn.Module, prefix: int, whole: list[int], last: int) -> list:
    state = InPlace(prefix, whole)
    stack = next(
        module
        for module in tower.modules()
        if isinstance(module, nn.ModuleList) and len(module) and any(hasattr(module[0], name) for name in NORMS)
    )
    handles = []
    for i, block in enumerate(stack):

        def before(module, args, kwargs, i=i):
            x = args[0] if args else kwargs["hidden_states"]
            if i == whole[0]:
                state.begin(x, kwargs.get("cu_seqlens"))
            if state.images is None or "position_embeddings" not in kwargs:
                return None
            return args, {**kwargs, "position_embeddings": tuple(map(state.table, kwargs["position_embeddings"]))}

        def between(module, args, i=i):
            if i in whole and i <= last:
                state.merge(args[0])

        norm = next(getattr(block, name) for name in NORMS if hasattr(block, name))
        handles += [block.register_forward_pre_hook(before, with_kwargs=True), norm.register_forward_pre_hook(between)]
    return handles


def last_read(model, count: int) -> int:
    read = getattr(model.config, "vision_feature_layer", None)
    read = [-1] if read is None else [read] if isinstance(read, int) else list(read)
    return max(i if i < 0 else i - 1 - count for i in read) % count


@pytest.mark.parametrize("family", TOWERS, ids=lambda family: family.name)
def test_restored_towers_equal_averages_in_place(family):
    model, inputs = family.model(), family.inputs((2, 1))
    with torch.no_grad():
        dense = model(**inputs).logits
        with tokenprune.wrap(model, Neighbours(), restore=True) as handle:
            merged = model(**inputs).logits
            towers = handle.report().towers
        handles = []
        for path in lookup(family.model_type).towers:
            tower = model.base_model.get_submodule(path)
            count = next(len(m) for m in tower.modules() if isinstance(m, nn.ModuleList) and hasattr(m[0], "mlp"))
            full = sorted(getattr(tower.config, "fullatt_block_indexes", None) or range(count))
            names = [name for name, _ in tower.named_parameters()]
            prefix = int(any(name.split(".")[-1] in ("class_embedding", "cls_token") for name in names))
            handles += watch(tower, prefix, full, last_read(model, count))
        expected = model(**inputs).logits
        for handle in handles:
            handle.remove()
        assert torch.equal(model(**inputs).logits, dense)
    assert towers
    assert all(tower.kept < tower.total for tower in towers)
    assert (merged - dense).abs().max() > 10 * family.tolerance
    assert (merged - expected).abs().max() < family.tolerance


@pytest.mark.parametrize("name", REFUSED)
def test_other_towers_are_refused(name):
    with pytest.raises(UnsupportedPolicyError, match="not of a shape that is known"):
        tokenprune.wrap(BY_NAME[name].model(), Neighbours())

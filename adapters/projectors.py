"""What makes rows of the decoder's input out of patches: `Adapter.project` of the families."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Find = Callable[[str], nn.Module]
Project = Callable[[Find, Tensor], Tensor]


def single(path: str) -> Project:
    """A row of every patch."""
    return lambda find, x: find(path)(x[:, 0][None])[0]


def behind_each_other(path: str) -> Project:
    """The P patches of a row behind each other."""
    return lambda find, x: find(path)(x.flatten(0, 1)).view(len(x), -1)


def side_by_side(path: str) -> Project:
    """The P patches of a row in its channels."""
    return lambda find, x: find(path)(x.flatten(1)[None])[0]


def in_a_dimension(path: str) -> Project:
    """The patches as they are, [rows, P, d_v]."""
    return lambda find, x: find(path)(x).view(len(x), -1)


def convolved(find: Find, x: Tensor) -> Tensor:
    """GLM: a convolution over 2 x 2 patches, then the merger."""
    side = round(x.shape[1] ** 0.5)
    down = find("visual.downsample")(x.mT.unflatten(-1, (side, side)))
    return find("visual.merger")(down.view(len(x), -1))


def unfolded(find: Find, x: Tensor) -> Tensor:
    """Mistral 3: patches inside every channel; what comes before this layer is part of the patches already."""
    projector = find("multi_modal_projector")
    return projector.linear_2(projector.act(projector.linear_1(projector.patch_merger.merging_layer(x.mT.flatten(1)))))


def gated(find: Find, x: Tensor) -> Tensor:
    """Aya, Cohere 2: the first layer makes value and gate; a normalisation before it is part of the patches already."""
    projector = find("multi_modal_projector")
    value, gate = projector.linear_1(x.flatten(1)).chunk(2, dim=-1)
    return projector.linear_2(projector.act(gate) * value)


def two_layers(find: Find, x: Tensor) -> Tensor:
    """LFM2: as `gated`, without a gate."""
    projector = find("multi_modal_projector")
    return projector.linear_2(projector.act(projector.linear_1(x.flatten(1))))


def averaged(find: Find, x: Tensor) -> Tensor:
    """Gemma 3: the mean of the patches, normalised and projected."""
    projector = find("multi_modal_projector")
    return torch.matmul(projector.mm_soft_emb_norm(x.mean(1)), projector.mm_input_projection_weight).type_as(x)


def average_of_projected(find: Find, x: Tensor) -> Tensor:
    """PerceptionLM: every patch is projected, then they are averaged."""
    projector = find("multi_modal_projector")
    return projector.linear_2(projector.gelu(projector.linear_1(x))).mean(1)

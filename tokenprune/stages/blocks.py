"""The blocks of a vision transformer, and the modules in them that hooks go to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

CLASS_TOKEN = ("class_embedding", "cls_token")
DISTILLATION_TOKEN = "distillation_token"


@dataclass(frozen=True)
class Shape:
    """A pre-norm block, h = x + attention(norm1(x)), h + mlp(norm2(h)), by the names of its parts.

    Attributes:
        attention: where queries meet keys.
        norm: norm2, which is given h.
        tail: the last module before the second sum, called once behind `norm`.
        scale: parameter that multiplies what `tail` answers; None where nothing does.
        sums: `tail` is given h, too, and sums itself.
        rotary: rotary tables that blocks are given may be [B, 1, n, d], those of every image.
    """

    attention: str
    norm: str
    tail: str
    scale: str | None = None
    sums: bool = False
    rotary: bool = False


SHAPES = (
    Shape("self_attn", "layer_norm2", "mlp"),  # CLIP, SigLIP and their many relatives
    Shape("attention", "layernorm_after", "drop_path2"),  # Qianfan
    Shape("attention", "layernorm_after", "dropout", scale="lambda_2"),  # InternVL
    Shape("attention", "layernorm_after", "dropout"),  # ViT, DeiT
    Shape("attention", "norm2", "drop_path", rotary=True),  # DINOv2, DINOv3
    Shape("attention.attention", "norm2", "drop_path", rotary=True),  # DINOv2 of older transformers
    Shape("attention.attention", "layernorm_after", "output", sums=True),  # VideoMAE
    Shape("attn", "norm2", "drop_path2", rotary=True),  # timm
    Shape("attn", "norm2", "mlp"),  # Qwen-VL and its relatives
)
# Parameters of a block itself: they scale its two branches.
FIRST, SECOND = {"lambda_1", "gamma_1"}, {"lambda_2", "gamma_2"}


@dataclass(frozen=True)
class Block:
    """One block, and its parts as in `Shape`."""

    module: nn.Module
    attention: nn.Module
    norm: nn.Module
    tail: nn.Module
    scale: str | None
    sums: bool
    rotary: bool

    def scaled(self, branch: Tensor) -> Tensor:
        return branch if self.scale is None else getattr(self.module, self.scale) * branch


def block_of(module: nn.Module) -> Block | None:
    """The parts of a block, None where it has no shape that is known, or a table over pairs of places (BEiT)."""
    if getattr(module, "relative_position_bias", None) is not None:
        return None
    own = {name for name, _ in module.named_parameters(recurse=False)} - FIRST
    for shape in SHAPES:
        scales = SECOND & own if shape.tail == "drop_path2" else {shape.scale} - {None}  # before that tail, any
        try:
            parts = [module.get_submodule(path) for path in (shape.attention, shape.norm, shape.tail)]
        except AttributeError:
            continue
        if own == scales and _can_be_listened_to(parts[0]):
            return Block(module, *parts, shape.scale, shape.sums, shape.rotary)
    return None


def _can_be_listened_to(attention: nn.Module) -> bool:
    """transformers' attention by its config, timm's by its norms of queries and keys; none with a table of places."""
    if getattr(attention, "rel_pos", None) is not None:
        return False
    return hasattr(attention, "config") or (hasattr(attention, "q_norm") and hasattr(attention, "k_norm"))


def find_blocks(tower: nn.Module) -> list[Block]:
    """The blocks of a tower, in order; none where it has none of a known shape, or several stacks of them."""
    stacks = []
    for module in tower.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            blocks = [block_of(child) for child in module]
            if all(blocks):
                stacks.append(blocks)
    return stacks[0] if len(stacks) == 1 else []


def prefix_of(tower: nn.Module) -> int:
    """How many class, distillation and register tokens precede the patches."""
    if (known := getattr(tower, "num_prefix_tokens", None)) is not None:  # timm
        return known
    names = [name.split(".")[-1] for name, _ in tower.named_parameters()]
    registers = getattr(getattr(tower, "config", None), "num_register_tokens", None) or 0
    return any(name in CLASS_TOKEN for name in names) + (DISTILLATION_TOKEN in names) + registers


def has_class_token(tower: nn.Module) -> bool:
    if hasattr(tower, "num_prefix_tokens"):  # timm
        return getattr(tower, "cls_token", None) is not None
    return any(name.split(".")[-1] in CLASS_TOKEN for name, _ in tower.named_parameters())


def read_layers(config: Any, count: int) -> list[int]:
    """Which of `count` blocks a vision-language model reads, by its config, counted from the end (-1 the last)."""
    read = getattr(config, "vision_feature_layer", None)
    read = [-1] if read is None else [read] if isinstance(read, int) else list(read)
    return [i if i < 0 else i - 1 - count for i in read]  # entry 0 of the hidden states enters the first block


def whole_picture(tower: nn.Module, count: int) -> Sequence[int]:
    """Blocks whose attention sees the whole picture rather than windows of it."""
    for holder in (tower, getattr(tower, "config", None)):
        if (found := getattr(holder, "fullatt_block_indexes", None)) is not None:
            return sorted(found)
    return range(count)


def deepstack_blocks(tower: nn.Module) -> Sequence[int]:
    """Blocks whose output is handed to layers of the language model."""
    return getattr(getattr(tower, "config", None), "deepstack_visual_indexes", None) or ()

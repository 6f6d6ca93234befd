"""Listening to timm's attention modules, which call torch's attention themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .bias import with_bias
from .hook import Hook
from .tap import Note


def listen_timm(
    attention: nn.Module, bias: Callable[[int], Tensor | None], note: Note, *, noted: Callable[[], bool]
) -> Callable[[], None]:
    """Show `note` queries and keys of every call, and add `bias(keys)` to its scores. Returns what undoes it.

    Args:
        noted: whether a note will look at them: rotating them a second time costs something.
    """
    from timm.layers import apply_rot_embed_cat

    call = threading.local()

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        call.rope, call.mask = kwargs.get("rope"), kwargs.get("attn_mask")
        if (added := bias(args[0].shape[1])) is None:
            return None
        call.mask = with_bias(call.mask, added, args[0].dtype)
        return args, {**kwargs, "attn_mask": call.mask}

    def rotated(x: Tensor) -> Tensor:
        if call.rope is None or not noted():
            return x
        first = attention.num_prefix_tokens
        half = getattr(attention, "rotate_half", False)
        return torch.cat([x[:, :, :first], apply_rot_embed_cat(x[:, :, first:], call.rope, half=half)], 2)

    def query(module: nn.Module, args: tuple, output: Tensor) -> None:
        call.query = output

    def key(module: nn.Module, args: tuple, output: Tensor) -> None:
        note(attention, rotated(call.query), rotated(output), call.mask, {"scaling": attention.scale})
        call.rope = call.mask = call.query = None

    handles = [
        attention.register_forward_pre_hook(Hook(before), with_kwargs=True),
        attention.q_norm.register_forward_hook(Hook(query)),
        attention.k_norm.register_forward_hook(Hook(key)),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo

"""Whether a policy's answer inside a tower is a reduction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks import Reduction
from ..errors import PolicyError
from ..policies.vision import VisionPolicy


@dataclass(frozen=True)
class Doubt:
    """What is known of an answer, on the device, not looked at yet.

    Attributes:
        key: of the block and the numbers of tokens it was given for.
        fine: [2] bool: whether the order and the source are as they should be.
        n, m: tokens there were, and that go on, with the prefix.
    """

    key: tuple[int, ...]
    fine: Tensor
    n: int
    m: int


def check_shapes(policy: VisionPolicy, answer: Reduction, shape: tuple[int, int], m: int) -> None:
    """Raises: PolicyError unless the answer has the shapes for [G, n] tokens, m of which go on."""
    name = _name(policy)
    if not isinstance(answer, Reduction) or answer.order.shape != (shape[0], m) or answer.order.dtype != torch.long:
        order = getattr(answer, "order", None)
        found = type(answer).__name__ if order is None else f"order {tuple(order.shape)} of {order.dtype}"
        raise PolicyError(
            f"policy {name!r} answered {found} where {m} of {shape[1]} tokens in {shape[0]} images go on: return a "
            f"Reduction with a long order [{shape[0]}, {m}], the prefix first."
        )
    for part in ("source", "weights"):
        value = getattr(answer, part)
        if value is not None and value.shape != shape:
            raise PolicyError(
                f"policy {name!r} answered {part} of shape {tuple(value.shape)}: return {list(shape)}, one per token."
            )


def doubt(key: tuple[int, ...], answer: Reduction, n: int, prefix: int, *, lowest: int) -> Doubt:
    """About an answer of right shapes. Does not wait for the device.

    Args:
        lowest: that a source may be: -1, or 0 where nothing may be dropped.
    """
    order, source = answer.order, answer.source
    rising, m = order.sort(1).values, order.shape[1]
    place = torch.arange(m, device=order.device)
    fine = (rising[:, 1:] > rising[:, :-1]).all() & (rising[:, 0] >= 0).all() & (rising[:, -1] < n).all()
    fine = fine & (order[:, :prefix] == place[:prefix]).all()
    carried = fine
    if source is not None:
        own = source.gather(1, order.clamp(0, n - 1)) == place
        carried = own.all() & (source >= lowest).all() & (source < m).all()
    return Doubt(key, torch.stack([fine, carried]), n, m)


def settle(policy: VisionPolicy, doubts: list[Doubt], prefix: int) -> None:
    """Look at them, which waits for the device once.

    Raises:
        PolicyError: an answer was no reduction.
    """
    if not doubts:
        return
    name = _name(policy)
    for one, (order, source) in zip(doubts, torch.stack([one.fine for one in doubts]).tolist(), strict=True):
        if not order:
            raise PolicyError(
                f"policy {name!r} answered an order that is not distinct, inside 0..{one.n - 1}, and the prefix of "
                f"{prefix} first as it is: return each token that goes on once."
            )
        if not source:
            lowest = 0 if policy.merges else -1
            raise PolicyError(
                f"policy {name!r} answered a source outside {lowest}..{one.m - 1}, or one where a token that goes on "
                "is carried by another: the source of order[:, i] is i."
            )


def _name(policy: VisionPolicy) -> str:
    return policy.name or type(policy).__name__

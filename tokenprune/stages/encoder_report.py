"""What a call of a text encoder did whose tokens left in front of the first block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EncoderReport:
    """The last texts; `str(report)` is a table.

    Attributes:
        policy: as text.
        layers, hidden, intermediate: sizes of the encoder, T, d and m.
        choice: FLOPs of the module that chose among n tokens, None without any.
        lengths, kept: tokens of each text before and behind, padding left out; empty if there was no call yet.
        shares: rho of each text.
        keep: [B, L] bool on the CPU, the tokens that stayed; None if there was no call yet.
    """

    policy: str
    layers: int
    hidden: int
    intermediate: int
    choice: Callable[[int], int] | None = field(default=None, repr=False)
    lengths: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    keep: Tensor | None = field(default=None, repr=False)

    @property
    def total(self) -> int:
        """Tokens, over all texts."""
        return sum(self.lengths)

    @property
    def indices(self) -> list[Tensor]:
        """Columns of the batch that stayed, ascending, for each text."""
        return [] if self.keep is None else [row.nonzero()[:, 0] for row in self.keep]

    @property
    def attention_mask(self) -> Tensor | None:
        """[B, L'] long on the CPU: 1 for the rows of a last_hidden_state without `restore` that are no padding."""
        if self.keep is None:
            return None
        if self.kept == self.lengths:  # nothing was moved
            return self.keep.long()
        return (torch.arange(max(self.kept)) < torch.tensor(self.kept)[:, None]).long()

    def flops(self, n: int) -> int:
        """Estimated FLOPs of n tokens in all blocks: 2 T (4 n d^2 + 2 n^2 d + 2 n d m)."""
        d = self.hidden
        return 2 * self.layers * (4 * n * d * d + 2 * n * n * d + 2 * n * d * self.intermediate)

    def cost(self) -> dict[str, int]:
        """Estimated FLOPs of all texts, padding left out, dense and as they were, the choice included."""
        choice = 0 if self.choice is None else sum(map(self.choice, self.lengths))
        return {
            "flops_dense": sum(map(self.flops, self.lengths)),
            "flops_pruned": sum(map(self.flops, self.kept)) + choice,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings: ready for JSON."""
        names = ("policy", "lengths", "kept", "shares", "total")
        indices = [one.tolist() for one in self.indices]
        return {
            **{name: getattr(self, name) for name in names},
            "stage": "encoder",
            "indices": indices,
            "cost": self.cost(),
        }

    def __str__(self) -> str:
        head = f"{self.policy} at stage encoder, positions original"
        if not self.total:
            return f"{head}\n  no text yet: nothing was removed"
        lines = [head]
        for i, (n, k, share) in enumerate(zip(self.lengths, self.kept, self.shares, strict=True)):
            lines.append(f"  text {i}  kept {k}/{n} (ratio {share:.2f})")
        cost = self.cost()
        part = cost["flops_pruned"] / cost["flops_dense"]
        return "\n".join([*lines, f"  estimated FLOPs of the blocks, the choice included: {part:.1%} of all tokens'"])

"""What a pruned forward did: counts, places, time, and what it saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder that its prefill cost depends on.

    Attributes:
        layers, hidden, intermediate: T, d and m of the formulas below.
        query, key_value: width of all query heads and of all key/value heads.
        dtype_bytes: bytes of one cached number.
    """

    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    dtype_bytes: int

    def flops(self, n: int) -> int:
        """Estimated prefill FLOPs of n tokens: 2 T (2 n d q + 2 n d kv + 2 n^2 q + 3 n d m).

        With q = kv = d this is 2 T (4 n d^2 + 2 n^2 d + 3 n d m), the formula of the CDPruner paper.
        """
        d, m, q, kv = self.hidden, self.intermediate, self.query, self.key_value
        return 2 * self.layers * (2 * n * d * q + 2 * n * d * kv + 2 * n * n * q + 3 * n * d * m)

    def kv_bytes(self, n: int) -> int:
        """Bytes of the key-value cache of n tokens."""
        return 2 * self.layers * n * self.key_value * self.dtype_bytes


@dataclass(frozen=True)
class UnitReport:
    """One unit of one sample.

    Attributes:
        sample: row of the batch (as the model saw it: beams and returned sequences count).
        unit: number of the unit within its sample.
        kind: "image", "video", "crop", "frame" or "prompt".
        total, kept: visual tokens before and after.
        grid: (frames, rows, columns), where known.
        indices: [kept] long on the CPU, the survivors' places in the unit, ascending.
        source: [total] long on the CPU, for every token the place in `indices` of the survivor that carries it, or -1.
        slots: [total] long on the CPU, where in the prompt of that forward the unit's tokens stood.
    """

    sample: int
    unit: int
    kind: str
    total: int
    kept: int
    grid: tuple[int, int, int] | None
    indices: Tensor = field(repr=False)
    source: Tensor = field(repr=False)
    slots: Tensor = field(repr=False)


@dataclass(frozen=True)
class Report:
    """What the last forward that saw visual tokens did; `str(report)` is a table.

    Attributes:
        policy: the policy or policies, as text.
        stage, positions: where the tokens left and which position ids the survivors have.
        units: one entry per unit; empty if no forward saw visual tokens yet.
        lengths: per sample (dense, pruned) length of the sequence in the language model, padding left out.
        selection_ms: time the selection took, if `wrap(..., timing=True)`; None otherwise.
        shape: sizes of the decoder, None where its config does not name them.
    """

    policy: str
    stage: str
    positions: str
    units: list[UnitReport] = field(default_factory=list)
    lengths: list[tuple[int, int]] = field(default_factory=list)
    selection_ms: float | None = None
    shape: DecoderShape | None = None

    @property
    def kept(self) -> int:
        """Visual tokens left, over all samples."""
        return sum(unit.kept for unit in self.units)

    @property
    def total(self) -> int:
        """Visual tokens before, over all samples."""
        return sum(unit.total for unit in self.units)

    def cost(self) -> dict[str, int] | None:
        """Estimated prefill FLOPs and KV-cache bytes over all samples, dense and pruned; None without `shape`."""
        if self.shape is None:
            return None
        return {
            "prefill_flops_dense": sum(self.shape.flops(dense) for dense, _ in self.lengths),
            "prefill_flops_pruned": sum(self.shape.flops(pruned) for _, pruned in self.lengths),
            "kv_bytes_dense": sum(self.shape.kv_bytes(dense) for dense, _ in self.lengths),
            "kv_bytes_pruned": sum(self.shape.kv_bytes(pruned) for _, pruned in self.lengths),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings: ready for JSON."""
        return {
            "policy": self.policy,
            "stage": self.stage,
            "positions": self.positions,
            "kept": self.kept,
            "total": self.total,
            "units": [
                {
                    "sample": unit.sample,
                    "unit": unit.unit,
                    "kind": unit.kind,
                    "total": unit.total,
                    "kept": unit.kept,
                    "grid": unit.grid,
                    "indices": unit.indices.tolist(),
                }
                for unit in self.units
            ],
            "lengths": self.lengths,
            "selection_ms": self.selection_ms,
            "cost": self.cost(),
        }

    def __str__(self) -> str:
        head = f"{self.policy} at stage {self.stage}, positions {self.positions}"
        if not self.units:
            return f"{head}\n  no forward with visual tokens yet: nothing was removed"
        lines = [head]
        for unit in self.units:
            grid = "" if unit.grid is None else f"  grid {'x'.join(map(str, unit.grid))}"
            share = 100 * unit.kept / unit.total
            lines.append(
                f"  sample {unit.sample}  {unit.kind} {unit.unit}  kept {unit.kept}/{unit.total} ({share:.1f} %){grid}"
            )
        lines += [f"  sample {i}  sequence {dense} -> {pruned}" for i, (dense, pruned) in enumerate(self.lengths)]
        if (cost := self.cost()) is not None:
            lines.append(
                f"  estimated prefill {_si(cost['prefill_flops_dense'])}FLOP -> "
                f"{_si(cost['prefill_flops_pruned'])}FLOP, KV cache {_si(cost['kv_bytes_dense'])}B -> "
                f"{_si(cost['kv_bytes_pruned'])}B"
            )
        if self.selection_ms is not None:
            lines.append(f"  selection {self.selection_ms:.2f} ms")
        return "\n".join(lines)


def _si(value: float) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} P"

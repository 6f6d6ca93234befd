"""What a pruned forward did: counts, places, time, and what it saved."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import pairwise
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

    def flops(self, n: int, layers: int | None = None) -> int:
        """Estimated prefill FLOPs of n tokens in T layers (None: all): 2 T (2 n d q + 2 n d kv + 2 n^2 q + 3 n d m).

        With q = kv = d this is 2 T (4 n d^2 + 2 n^2 d + 3 n d m), the formula of the CDPruner paper.
        """
        d, m, q, kv = self.hidden, self.intermediate, self.query, self.key_value
        layers = self.layers if layers is None else layers
        return 2 * layers * (2 * n * d * q + 2 * n * d * kv + 2 * n * n * q + 3 * n * d * m)

    def kv_bytes(self, n: int, layers: int | None = None) -> int:
        """Bytes of the key-value cache of n tokens."""
        return 2 * (self.layers if layers is None else layers) * n * self.key_value * self.dtype_bytes


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
class EventReport:
    """What happened in front of one layer of the language model.

    Attributes:
        policy: by name.
        layer: that no longer sees the tokens that left.
        scored: layer whose attention they were scored by, None where by none.
        kept: visual tokens behind it, over all samples.
        lengths: per sample, tokens of the sequence behind it, padding left out.
        forgotten: the caches of the layers before hold no more than those behind.
        event_ms: time of scores and selection, if `wrap(..., timing=True)`.
        saved_ms: what the layers behind it took less than they would have, taking each for as slow as those before it
            were on average; if timed, and if there are layers between it and the events before and behind it. Both are
            of this one forward: repeat it, the first is slow for other reasons.
    """

    policy: str
    layer: int
    scored: int | None
    kept: int
    lengths: list[int]
    forgotten: bool = False
    event_ms: float | None = None
    saved_ms: float | None = None


@dataclass(frozen=True)
class TowerReport:
    """One image (tile, frame, or clip that is seen at once) inside the vision tower.

    Attributes:
        total, kept: patches at its input, and behind the last block that is read.
        grid: (frames, rows, columns) of the patches, where known.
        indices: [kept] long on the CPU, places of the patches left, ascending.
        source: [total] long on the CPU, for every patch the place in `indices` of the one that carries it, or -1.
        blocks: per block, tokens that its attention reads and that its MLP reads, class tokens included.
        weights: per block, numbers in the matrices of its attention and of its MLP, and its width.
        tokens: at its input, class tokens included.
    """

    total: int
    kept: int
    grid: tuple[int, int, int] | None
    indices: Tensor = field(repr=False)
    source: Tensor = field(repr=False)
    blocks: list[tuple[int, int]] = field(repr=False)
    weights: list[tuple[int, int, int]] = field(repr=False)
    tokens: int

    def flops(self) -> tuple[int, int]:
        """Estimated FLOPs of the blocks, dense and as they were: 2 (n a + 2 n^2 d + n' m) for each.

        n tokens are read by its attention with matrices of a numbers and width d, n' by its MLP with m numbers. Where
        attention is in windows, this is too much.
        """
        dense = [(self.tokens, self.tokens)] * len(self.blocks)
        return tuple(
            sum(
                2 * (n * a + 2 * n * n * d + after * m)
                for (n, after), (a, m, d) in zip(blocks, self.weights, strict=True)
            )
            for blocks in (dense, self.blocks)
        )


@dataclass(frozen=True)
class Report:
    """What the last forward that saw visual tokens did; `str(report)` is a table.

    Attributes:
        policy: the policy or policies, as text.
        stage, positions: where the tokens left and which position ids the survivors have.
        units: one entry per unit; empty if no forward saw visual tokens yet.
        lengths: per sample (dense, pruned) length of the sequence as the language model's first layer reads it, padding
            left out.
        events: what happened inside the language model, in order.
        selection_ms: time the selection in front of the language model took, if `wrap(..., timing=True)` and any was
            made there; None otherwise.
        shape: sizes of the decoder, None where its config does not name them.
        towers: what happened inside the vision tower, one entry per image (tile, frame, clip) that it was given; in a
            vision-language model none where no patch left it.
    """

    policy: str
    stage: str
    positions: str
    units: list[UnitReport] = field(default_factory=list)
    lengths: list[tuple[int, int]] = field(default_factory=list)
    events: list[EventReport] = field(default_factory=list)
    selection_ms: float | None = None
    shape: DecoderShape | None = None
    towers: list[TowerReport] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Visual tokens left, over all samples."""
        return sum(unit.kept for unit in self.units)

    @property
    def total(self) -> int:
        """Visual tokens before, over all samples."""
        return sum(unit.total for unit in self.units)

    def cost(self) -> dict[str, int] | None:
        """Estimated FLOPs of the tower, where tokens left it, prefill FLOPs and KV-cache bytes, dense and pruned.

        Over all samples; None where neither the tower was shortened nor `shape` is known.
        """
        cost = {}
        if self.towers:
            flops = [tower.flops() for tower in self.towers]
            cost = {"tower_flops_dense": sum(d for d, _ in flops), "tower_flops_pruned": sum(p for _, p in flops)}
        if self.shape is None:
            return cost or None
        samples = range(len(self.lengths))
        dense = [[(before, self.shape.layers)] for before, _ in self.lengths]
        stretches = {
            "prefill_flops": (self.shape.flops, dense, [self.stretches(i) for i in samples]),
            "kv_bytes": (self.shape.kv_bytes, dense, [self.stretches(i, cached=True) for i in samples]),
        }
        return cost | {
            f"{what}_{how}": sum(of(n, layers) for sample in found for n, layers in sample)
            for what, (of, *both) in stretches.items()
            for how, found in zip(("dense", "pruned"), both, strict=True)
        }

    def stretches(self, sample: int, *, cached: bool = False) -> list[tuple[int, int]]:
        """(tokens, number of layers that read so many, or whose caches hold so many) of one sample."""
        at = [0, *(event.layer for event in self.events), self.shape.layers]
        lengths = [self.lengths[sample][1], *(event.lengths[sample] for event in self.events)]
        last = max((i for i, event in enumerate(self.events, 1) if event.forgotten), default=0) if cached else 0
        lengths[:last] = last * [lengths[last]]
        return [(n, end - start) for n, (start, end) in zip(lengths, pairwise(at), strict=True)]

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
            "towers": [
                {
                    "total": tower.total,
                    "kept": tower.kept,
                    "grid": tower.grid,
                    "indices": tower.indices.tolist(),
                    "blocks": tower.blocks,
                }
                for tower in self.towers
            ],
            "events": [asdict(event) for event in self.events],
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
        lines += _tower_lines(self.towers)
        lines += [f"  sample {i}  sequence {dense} -> {pruned}" for i, (dense, pruned) in enumerate(self.lengths)]
        lines += [_event_line(event, self.total) for event in self.events]
        cost = self.cost() or {}
        if "tower_flops_dense" in cost:
            lines.append(
                f"  estimated tower {_si(cost['tower_flops_dense'])}FLOP -> {_si(cost['tower_flops_pruned'])}FLOP"
            )
        if "kv_bytes_dense" in cost:
            lines.append(_cost_line(cost))
        if self.selection_ms is not None:
            lines.append(f"  selection {self.selection_ms:.2f} ms")
        return "\n".join(lines)


@dataclass(frozen=True)
class SkipReport:
    """What the last prompt did whose tokens skip blocks of the language model; `str(report)` is a table.

    Attributes:
        policy: as text.
        lengths: tokens of each prompt, padding left out; empty if there was no prompt yet.
        computed: per block and prompt, tokens that it computed.
        kept: [blocks, B, L] bool on the CPU, which these are; None if there was no prompt yet.
        shape: sizes of the decoder, None where its config does not name them.
        rows: of attention read in every block for the choice, and `router`: numbers of the module that chose.
    """

    policy: str
    lengths: list[int] = field(default_factory=list)
    computed: list[list[int]] = field(default_factory=list)
    kept: Tensor | None = field(default=None, repr=False)
    shape: DecoderShape | None = None
    rows: int = 0
    router: int = 0

    @property
    def total(self) -> int:
        """Pairs (token, block)."""
        return sum(self.lengths) * len(self.computed)

    @property
    def skipped(self) -> int:
        """Pairs that were not computed."""
        return self.total - sum(map(sum, self.computed))

    def cost(self) -> dict[str, int] | None:
        """Estimated FLOPs of the prompt and bytes of its KV cache, dense and as it was, the choice included."""
        if self.shape is None:
            return None
        dense = [n for n in self.lengths for _ in self.computed]
        done = [n for block in self.computed for n in block]
        choice = 2 * sum(self.rows * self.shape.query * n for n in done) + 2 * self.router * sum(dense)
        return {
            "prefill_flops_dense": sum(self.shape.flops(n, 1) for n in dense),
            "prefill_flops_pruned": sum(self.shape.flops(n, 1) for n in done) + choice,
            "kv_bytes_dense": sum(self.shape.kv_bytes(n, 1) for n in dense),
            "kv_bytes_pruned": sum(self.shape.kv_bytes(n, 1) for n in done),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings: ready for JSON."""
        names = ("policy", "lengths", "computed", "skipped", "total")
        return {**{name: getattr(self, name) for name in names}, "stage": "skip", "cost": self.cost()}

    def __str__(self) -> str:
        head = f"{self.policy} at stage skip, positions original"
        if not self.total:
            return f"{head}\n  no prompt yet: nothing was skipped"
        share = 100 * self.skipped / self.total
        lines = [head, f"  skipped {self.skipped}/{self.total} pairs of token and block ({share:.1f} %)"]
        for i, n in enumerate(self.lengths):
            blocks = " ".join(str(block[i]) for block in self.computed)
            lines.append(f"  sample {i}  {n} tokens, computed in each block: {blocks}")
        if (cost := self.cost()) is not None:
            lines.append(_cost_line(cost))
        return "\n".join(lines)


def _cost_line(cost: dict[str, int]) -> str:
    return (
        f"  estimated prefill {_si(cost['prefill_flops_dense'])}FLOP -> {_si(cost['prefill_flops_pruned'])}FLOP, "
        f"KV cache {_si(cost['kv_bytes_dense'])}B -> {_si(cost['kv_bytes_pruned'])}B"
    )


def _tower_lines(towers: list[TowerReport]) -> list[str]:
    """One line for all images that were shortened alike."""
    alike = Counter((tower.total, tower.kept, tuple(tower.blocks)) for tower in towers)
    lines = []
    for (total, kept, blocks), count in alike.items():
        read = [before for before, _ in blocks]  # what is behind a block is what the next one reads
        steps = [*read, kept + read[0] - total]
        places = [str(i) for i, (before, after) in enumerate(pairwise(steps)) if after < before]
        at = "" if not places else f" in block{'s' if len(places) > 1 else ''} {_ranges(places)}"
        images = f"{count} image{'s' if count > 1 else ''}"
        lines.append(f"  tower  {images}  {kept}/{total} patches left ({100 * kept / total:.1f} %){at}")
    return lines


def _ranges(places: list[str]) -> str:
    """1, 2, 3, 5 -> 1 to 3, 5"""
    runs: list[list[int]] = []
    for place in map(int, places):
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _event_line(event: EventReport, total: int) -> str:
    scored = "" if event.scored is None else f" by the attention of layer {event.scored}"
    forgotten = ", and so do the caches of all layers before" if event.forgotten else ""
    line = f"  layer {event.layer}  {event.policy} kept {event.kept}/{total}{scored}{forgotten}"
    if event.event_ms is None:
        return line
    if event.saved_ms is None:
        return f"{line}, took {event.event_ms:.2f} ms"
    verdict = "" if event.saved_ms > event.event_ms else ": costs more than it saves on this shape"
    return f"{line}, took {event.event_ms:.2f} ms, saved about {event.saved_ms:.2f} ms{verdict}"


def _si(value: float) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} P"

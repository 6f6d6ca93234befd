"""What reducing tokens inside a vision transformer means, as one plain loop over its blocks in float64.

The linear layers, norms and MLPs are copies of the model's; attention, its bias, rotary embedding, merging and
restoring are written here. The blocks of an unwrapped model are replaced by stubs that answer what this loop computed,
so that all the model makes of its blocks (pooling, heads, projectors, DeepStack) is the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.blocks import BlockTokens


@dataclass(frozen=True)
class State:
    """Behind a block: G images of n tokens.

    Attributes:
        x: [G, n, D]
        sizes: [G, n]
        places: [G, n], where they stood in the tower's input.
        source: [G, N], for every token of the input the one that carries it, or -1.
    """

    x: Tensor
    sizes: Tensor
    places: Tensor
    source: Tensor

    @classmethod
    def of(cls, x: Tensor) -> State:
        every = torch.arange(x.shape[1]).expand(len(x), -1)
        return cls(x, torch.ones(x.shape[:2]), every, every)

    def restored(self) -> Tensor:
        """[G, N, D], every place with a copy of its token; zeros where it was dropped."""
        rows = [x[source.clamp_min(0)] * (source >= 0)[:, None] for x, source in zip(self.x, self.source, strict=True)]
        return torch.stack(rows)

    def reduced(self, answer: Any, *, ascending: bool) -> State:
        order, source, (groups, n) = answer.order, answer.source, self.x.shape[:2]
        if source is None:
            source = torch.full((groups, n), -1)
            for g in range(groups):
                for place, token in enumerate(order[g].tolist()):
                    source[g, token] = place
        weights = self.sizes if answer.weights is None else answer.weights
        states = []
        for g in range(groups):
            kept, carrier = order[g].tolist(), source[g].tolist()
            if ascending:
                ranks = sorted(range(len(kept)), key=lambda i: int(self.places[g, kept[i]]))
                carrier = [-1 if to < 0 else ranks.index(to) for to in carrier]
                kept = [kept[i] for i in ranks]
            rows, sizes = [], []
            for place in range(len(kept)):
                members = [token for token, to in enumerate(carrier) if to == place]
                shares = weights[g, members].double()
                total = (shares[:, None] * self.x[g, members].double()).sum(0)
                rows.append(total / shares.sum() if answer.average else total)
                sizes.append(self.sizes[g, members].sum())
            carrier = [-1 if token < 0 else carrier[token] for token in self.source[g].tolist()]
            states.append((torch.stack(rows), torch.stack(sizes), self.places[g, kept], torch.tensor(carrier)))
        return State(*map(torch.stack, zip(*states, strict=True)))


@dataclass
class Parts:
    """The modules of one pre-norm block."""

    block: nn.Module

    def __post_init__(self):
        outer = _first(self.block, "self_attn", "attention", "attn")
        self.attention = getattr(outer, "attention", outer)
        self.out = _first(self.attention, "out_proj", "o_proj", "projection_layer", "projection", "proj", default=None)
        if self.out is None:
            self.out = outer.output.dense
        self.first = _first(self.block, "layer_norm1", "layernorm_before", "norm1")
        self.second = _first(self.block, "layer_norm2", "layernorm_after", "norm2")
        self.heads = _first(self.attention, "num_heads", "num_attention_heads")

    def project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, [G, heads, n, d] each."""
        a = self.attention
        if getattr(a, "qkv", None) is not None:
            qkv = a.qkv(x)
            if getattr(a, "q_bias", None) is not None:
                qkv = qkv + torch.cat([a.q_bias, a.k_bias, a.v_bias])
            found = list(qkv.chunk(3, -1))
        else:
            found = [
                _first(a, f"{one}_proj", name)(x) for one, name in zip("qkv", ("query", "key", "value"), strict=True)
            ]
        width = found[0].shape[-1]
        norms = [getattr(a, "q_norm", None), getattr(a, "k_norm", None), None]
        for i, norm in enumerate(norms):
            whole = norm is not None and getattr(norm, "weight", torch.empty(0)).shape == (width,)
            found[i] = norm(found[i]) if whole else found[i]
            found[i] = found[i].unflatten(-1, (self.heads, -1)).transpose(1, 2)
            found[i] = norm(found[i]) if norm is not None and not whole else found[i]
        return found

    def attended(self, y: Tensor, x: Tensor) -> Tensor:
        """What is added to the residual, of attention's sums y [G, n, h d] over the normed tokens x."""
        a, block = self.attention, self.block
        y = a.norm(y) if getattr(a, "norm", None) is not None else y
        y = y * a.gate(x).sigmoid() if getattr(a, "gate", None) is not None else y
        return _scaled(block, self.out(y), "layer_scale1", "ls1", "gamma_1", "lambda_1")

    def mlp(self, x: Tensor) -> Tensor:
        block, y = self.block, self.second(x)
        y = block.mlp(y) if hasattr(block, "mlp") else block.output.dense(block.intermediate(y))
        return _scaled(block, y, "layer_scale2", "ls2", "gamma_2", "lambda_2")


def _first(module: Any, *names: str, default: Any = ...) -> Any:
    for name in names:
        if getattr(module, name, None) is not None:
            return getattr(module, name)
    if default is ...:
        raise AttributeError(f"{type(module).__name__} has none of {names}")
    return default


def _scaled(block: nn.Module, y: Tensor, *names: str) -> Tensor:
    scale = _first(block, *names, default=None)
    return y if scale is None else scale(y) if isinstance(scale, nn.Module) else scale * y


@dataclass(frozen=True)
class Rotary:
    """cos and sin [N, d] of every token of the input, and whether halves or neighbours turn into each other."""

    cos: Tensor
    sin: Tensor
    halves: bool

    @classmethod
    def given(cls, kwargs: dict[str, Any], block: nn.Module, total: int) -> Rotary | None:
        """Of what a block is called with; those in front of the patches do not turn."""
        if kwargs.get("rope") is not None:
            (sin, cos), halves = kwargs["rope"].chunk(2, -1), getattr(Parts(block).attention, "rotate_half", False)
        elif kwargs.get("position_embeddings") is not None:
            (cos, sin), halves = kwargs["position_embeddings"], True
        else:
            return None
        prefix = total - len(cos)
        still = torch.ones(prefix, cos.shape[-1])
        return cls(torch.cat([still, cos.double()]), torch.cat([0 * still, sin.double()]), halves)

    def __getitem__(self, which: Any) -> Rotary:
        return replace(self, cos=self.cos[which], sin=self.sin[which])

    def turned(self, x: Tensor, places: Tensor) -> Tensor:
        """x [G, h, n, d], each token by the angles of its own place [G, n]."""
        cos, sin = self.cos[places][:, None], self.sin[places][:, None]
        if self.halves:
            a, b = x.chunk(2, -1)
            other = torch.cat([-b, a], -1)
        else:
            other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * cos + other * sin


def loop(
    blocks: list[nn.Module],
    policy: Any,
    x: Tensor,
    *,
    prefix: int = 0,
    grid: tuple[int, int, int] | None = None,
    depth: int | None = None,
    where: list[int] | None = None,
    rotary: Rotary | None = None,
    segments: list[Tensor | None] | None = None,
    ascending: bool = False,
) -> list[State]:
    """Images [G, N, D] of one size through the blocks.

    Args:
        policy: None reduces nothing.
        depth: blocks up to the last that is read.
        where: of these, those behind which tokens may leave; the policy's counts are spread over them.
        segments: per block [N], who attends to whom (None: all do).
        ascending: survivors stay in the order they had, whatever order the policy gives.
    """
    state, total, states = State.of(x.double()), x.shape[1] - prefix, []
    where = list(range(len(blocks) if depth is None else depth)) if where is None else where
    wanted = dict(zip(where, policy.counts(len(where), total, grid), strict=True)) if policy is not None else {}
    for number, block in enumerate(blocks):
        parts = Parts(block)
        normed = parts.first(state.x)
        q, k, v = (one.double() for one in parts.project(normed))
        if rotary is not None:
            q, k = rotary.turned(q, state.places), rotary.turned(k, state.places)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if policy is not None and policy.proportional:
            scores = scores + state.sizes.log()[:, None, None]
        if segments is not None and segments[number] is not None:
            of = segments[number][state.places]
            scores = scores.masked_fill((of[:, :, None] != of[:, None])[:, None], float("-inf"))
        shares = scores.softmax(-1)
        y = (shares @ v).transpose(1, 2).flatten(2)
        state = replace(state, x=state.x + parts.attended(y, normed))

        def reduced(state, number=number, k=k, shares=shares):
            left = wanted.get(number, state.x.shape[1] - prefix)
            if left >= state.x.shape[1] - prefix:
                return state
            tokens = BlockTokens(
                hidden=state.x,
                keys=k.mean(1),
                class_attention=shares[:, :, 0].mean(1) if prefix else None,
                sizes=state.sizes,
                places=state.places,
                prefix=prefix,
                grid=grid,
                total=total,
                block=where.index(number),
                depth=len(where),
            )
            return state.reduced(policy.reduce(tokens, left), ascending=ascending)

        behind = getattr(policy, "behind", False)
        state = state if behind else reduced(state)
        state = replace(state, x=state.x + parts.mlp(state.x))
        state = reduced(state) if behind else state
        states.append(state)
    return states


def _exact(block: nn.Module) -> nn.Module:
    """The block in float64, its gradients reaching the parameters of the block itself."""
    copy = deepcopy(block).double()
    for path, own in block.named_parameters():
        module, _, name = path.rpartition(".")
        del copy.get_submodule(module)._parameters[name]
        setattr(copy.get_submodule(module), name, own.double())
    return copy


@contextmanager
def reducing(
    blocks: nn.ModuleList, policy: Any, *, restored: list[int] | None = None, **kwargs: Any
) -> Iterator[list[list[State]]]:
    """The model's blocks answer what the loop computes, whose states behind every block are noted call by call.

    Args:
        restored: blocks that answer a row for every place; all others one for every token left.
        kwargs: of `loop`.
    """
    restored = list(range(len(blocks))) if restored is None else [i % len(blocks) for i in restored]
    calls: list[list[State]] = []
    exact = [_exact(block) for block in blocks]

    def compute(hidden: Tensor, *args: Any, **given: Any) -> list[Tensor]:
        if any(isinstance(one, Tensor) for one in args) or given.get("attention_mask") is not None:
            raise NotImplementedError("tokens that are padding")
        rotary = Rotary.given(given, blocks[0], hidden.shape[1])
        calls.append(loop(exact, policy, hidden, rotary=rotary, **kwargs))
        return [state.restored() if i in restored else state.x for i, state in enumerate(calls[-1])]

    with stubbed(blocks, compute):
        yield calls


@contextmanager
def reducing_packed(
    blocks: nn.ModuleList, policy: Any, *, full: list[int] | None = None, grids: Tensor | None = None, **kwargs: Any
) -> Iterator[list[list[list[State]]]]:
    """As `reducing`, for towers that read the images (frames) of a batch as one row [N, D], each for itself.

    Args:
        full: blocks in which whole images attend to themselves, and behind which tokens may leave; in all others
            windows do, as the first block is told. None: all of them.
        grids: [images, 3], (frames, rows, columns) of each; needed with `full`.
        kwargs: of `loop`.
    """
    calls: list[list[list[State]]] = []
    exact = [_exact(block) for block in blocks]

    def compute(hidden: Tensor, *args: Any, **given: Any) -> list[Tensor]:
        rotary, bounds = Rotary.given(given, blocks[0], len(hidden)), given["cu_seqlens"]
        segments, images = None, bounds.tolist()
        if full is not None:
            images = [0, *torch.repeat_interleave(grids[:, 1] * grids[:, 2], grids[:, 0]).cumsum(0).tolist()]
            window = torch.bucketize(torch.arange(len(hidden)), bounds, right=True)
            segments = [None if number in full else window for number in range(len(blocks))]
        calls.append([])
        for start, stop in pairwise(images):
            calls[-1].append(
                loop(
                    exact,
                    policy,
                    hidden[None, start:stop],
                    rotary=None if rotary is None else rotary[start:stop],
                    segments=segments and [one if one is None else one[start:stop] for one in segments],
                    where=full,
                    ascending=True,
                    **kwargs,
                )
            )
        return [torch.cat([states[i].restored()[0] for states in calls[-1]]) for i in range(len(blocks))]

    with stubbed(blocks, compute):
        yield calls


@contextmanager
def stubbed(blocks: nn.ModuleList, compute: Callable[..., list[Tensor]]) -> Iterator[None]:
    """The first block computes what all of them answer."""
    answers: list[Tensor] = []

    def first(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        answers[:] = [one.to(hidden.dtype) for one in compute(hidden, *args, **kwargs)]
        return answers[0]

    def later(number: int, *args: Any, **kwargs: Any) -> Tensor:
        return answers[number]

    for number, block in enumerate(blocks):
        block.forward = partial(later, number) if number else first
    try:
        yield
    finally:
        for block in blocks:
            del block.forward

"""How strongly a token moves when the vision features that it is projected from move.

With x [P, d_v] the features of one token, P(x) [D] the projector and u a random unit vector of R^d_v that is added to
each of the P features alike, both functions estimate the size of the directional derivative: `zeroth_order`
E |J_u| by finite differences, `second_moment` (E |J_u|^2)^(1/2) in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations_with_replacement

import torch
from torch import Tensor
from torch.nn import functional as F

from ..projection import Mlp
from .greedy import BLOCK_ELEMENTS

# Elements of all matrices that `second_moment` keeps with a model (256 MiB); beyond, it makes them anew on every call.
KEPT_ELEMENTS = 2**26


@torch.no_grad()
def zeroth_order(project: Callable[[Tensor], Tensor], encoder: Tensor, directions: Tensor, h: float) -> Tensor:
    """Mean over j of |P(x + h u_j) - P(x - h u_j)| / (2 h), u_j added to each of the P features: [G, N] float32.

    Args:
        project: maps [..., P, d_v] to [..., D] in float32.
        encoder: [G, N, P, d_v].
        directions: u, [m, d_v].
        h: the step.

    Cost: 2 m projections of every token; memory: blocks of directions and tokens, about 64 MiB of float32 together as
    long as no inner layer is much wider than P d_v and D.
    """
    x, steps = encoder.float().flatten(0, 1), h * directions.float()
    width = max(x[0].numel(), project(x[:1]).shape[-1])
    rows = max(1, BLOCK_ELEMENTS // (8 * width))  # eight tensors of `width` a row: both sides, inputs to outputs
    some = min(len(steps), rows)
    sums = []
    for tokens in x.split(max(1, rows // some)):
        total = x.new_zeros(len(tokens))
        for step in steps.split(some):
            # patch by patch the same direction: [t, 1, P, d_v] + [s, 1, d_v]
            difference = project(tokens[:, None] + step[:, None])
            difference = difference - project(tokens[:, None] - step[:, None])
            total += difference.norm(dim=-1).sum(-1)
        sums.append(total)
    return (torch.cat(sums) / (2 * h * len(steps))).view(encoder.shape[:2])


@torch.no_grad()
def second_moment(mlp: Mlp, encoder: Tensor) -> Tensor:
    """(|J E|_F^2 / d_v)^(1/2) of every token: [G, N] float32. J [D, P d_v]: Jacobian of `mlp`; E: P identities stacked.

    Exact, since u has E[u u^T] = I / d_v. With hidden units a = W1 y + b1 of the normalised features y, J is
    W2 diag(s) W1 (dy/dx), s = g'(a); a gated unit g(a) * b counts as two, [W1; V] with s = [g'(a) * b; g(a)] and
    [W2, W2]. A normalisation has dy/dx = r diag(weight) (C - n n^T / d): n the normalised vector of width d before its
    weight, r = 1 / its scale, C the centring of LayerNorm or the identity. So W1 (dy/dx) E is

        sum_b r_b (A_b - z_b m_b^T / d),

    over patches b if each is normalised by itself (A_b = W1_b diag(weight_b) C, m_b = n_b, z_b = A_b n_b), with one
    term otherwise (A = the sum over patches of W1 diag(weight) C, m = the sum of n, z = W1 diag(weight) n), and its
    product with W2 diag(s) has the squared norm

        sum_bc r_b r_c s^T K_bc s - 2/d sum_b e_b . t_b + 1/d^2 sum_bc (m_b . m_c) (t_b . t_c),
        K_bc = (A_b A_c^T) * (W2^T W2),  t_b = r_b W2 (s * z_b),  e_b = W2 (s * sum_c r_c A_c m_b).

    Args:
        mlp: with H hidden units (twice its width where it is gated).
        encoder: [G, N, P, d_v].

    Cost: H^2 multiply-adds per token, and once per `mlp` H^2 (D + d_v); with a normalisation per patch P (P + 1) / 2
    times the parts without D, and 2 P applications of W1 and W2 per token. Memory: N H floats and blocks of 64 MiB;
    with `mlp`, H^2 floats for every K_bc, made anew on every call if they exceed `KEPT_ELEMENTS` together.
    """
    x = encoder.float().flatten(0, 1)
    first, last = _layers(mlp, x.shape[1])
    per_patch = mlp.norm != "none" and mlp.per_patch
    a = first if per_patch else first.sum(1, keepdim=True)  # [H, blocks, d_v]
    parts = x.split(max(1, BLOCK_ELEMENTS // (8 * a.shape[1] * max(*last.shape, a.shape[2]))))
    slopes, scales, square = [], [], []
    for part in parts:
        s = _slopes(mlp, part)
        n, r = _normalised(mlp, part)
        slopes.append(s)
        scales.append(r)
        if n is None:
            square.append(x.new_zeros(len(part)))
            continue
        m, d = (n, n.shape[2]) if per_patch else (n.sum(1, keepdim=True), n[0].numel())
        z = torch.einsum("tbd,hbd->tbh", n, first) if per_patch else F.linear(n.flatten(1), first.flatten(1))[:, None]
        through = torch.stack([F.linear((r[..., None] * one[:, None]).flatten(1), a.flatten(1)) for one in m.unbind(1)])
        e, t = F.linear(s * through, last).transpose(0, 1), F.linear(s[:, None] * z, last) * r[..., None]
        square.append(((m @ m.mT) * (t @ t.mT)).sum((1, 2)) / d**2 - 2 / d * (e * t).sum((1, 2)))
    for b, c, form in _forms(mlp, a, last):
        for total, s, r in zip(square, slopes, scales, strict=True):
            total += (1 if b == c else 2) * r[:, b] * r[:, c] * ((s @ form) * s).sum(-1)
    return (torch.cat(square).clamp_min(0.0) / x.shape[-1]).sqrt().view(encoder.shape[:2])


def _layers(mlp: Mlp, patches: int) -> tuple[Tensor, Tensor]:
    """W1 diag(weight) C, [H, P, d_v], and W2, [D, H]; both factors of a gated unit one after the other."""
    first = mlp.w1 if mlp.gate is None else torch.cat([mlp.w1, mlp.gate])
    last = mlp.w2 if mlp.gate is None else torch.cat([mlp.w2, mlp.w2], 1)
    first = first.unflatten(1, (patches, -1))
    if mlp.norm == "none":
        return first, last
    if mlp.norm_weight is not None:
        first = first * (mlp.norm_weight if mlp.per_patch else mlp.norm_weight.view(patches, -1))
    if mlp.norm == "layer":
        first = first - first.mean(2 if mlp.per_patch else (1, 2), keepdim=True)
    return first, last


def _normalised(mlp: Mlp, x: Tensor) -> tuple[Tensor | None, Tensor]:
    """n [t, P, d_v] and r [t, blocks] of x [t, P, d_v]; no n and ones without a normalisation."""
    if mlp.norm == "none":
        return None, x.new_ones(len(x), 1)
    width = 2 if mlp.per_patch else (1, 2)
    n = x - x.mean(width, keepdim=True) if mlp.norm == "layer" else x
    r = (n.square().mean(width, keepdim=True) + mlp.eps).rsqrt()
    return n * r, r.flatten(1)


def _slopes(mlp: Mlp, x: Tensor) -> Tensor:
    """s [t, H]: what a hidden unit's output moves by when its input does."""
    y = mlp.normalise(x)
    a = F.linear(y, mlp.w1, mlp.b1)
    with torch.inference_mode(False), torch.enable_grad():  # any activation, whatever mode the caller is in
        leaf = a.clone().requires_grad_()
        value = mlp.act(leaf.clone())  # an activation may work in place
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    if mlp.gate is None:
        return slope
    return torch.cat([slope * F.linear(y, mlp.gate, mlp.gate_bias), value.detach()], 1)


def _forms(mlp: Mlp, a: Tensor, last: Tensor) -> Iterable[tuple[int, int, Tensor]]:
    """b, c and K_bc [H, H] for all b <= c."""
    pairs = list(combinations_with_replacement(range(a.shape[1]), 2))

    def made() -> Iterator[tuple[int, int, Tensor]]:
        gram = last.mT @ last
        for b, c in pairs:
            yield b, c, (a[:, b] @ a[:, c].mT) * gram

    if len(pairs) * len(a) ** 2 > KEPT_ELEMENTS:
        return made()
    key = ("second_moment", a.shape)
    if key not in mlp.memo:
        mlp.memo[key] = list(made())
    return mlp.memo[key]

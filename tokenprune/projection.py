"""A model's projector as a policy sees it: a function of single tokens, and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """P(x) = W2 (g(W1 y + b1) [* (V y + c)]) + b2, where y is the normalised x: P patches of width d_v side by side.

    Attributes:
        w1, b1: [d_h, P d_v] and [d_h], the first layer.
        gate, gate_bias: V and c, of the same shapes: the ungated factor of a gated unit (SwiGLU); None without.
        w2, b2: [D, d_h] and [D], the last layer.
        act: g, elementwise.
        norm: "none", "layer" (LayerNorm) or "rms" (RMSNorm).
        per_patch: the normalisation is over each patch by itself; over all of x otherwise.
        norm_weight, norm_bias, eps: of the normalisation; [d_v] if `per_patch`, else [P d_v].
        memo: what functions of the weights alone keep between calls; when weights change, make a new `Mlp`.
    """

    w1: Tensor
    w2: Tensor
    act: Callable[[Tensor], Tensor]
    b1: Tensor | None = None
    b2: Tensor | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    norm: Literal["none", "layer", "rms"] = "none"
    per_patch: bool = True
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    eps: float = 1e-6
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def normalise(self, x: Tensor) -> Tensor:
        """[..., P, d_v] -> [..., P d_v]: the input of the first layer."""
        y = x if self.per_patch else x.flatten(-2)
        if self.norm == "layer":
            y = F.layer_norm(y, y.shape[-1:], self.norm_weight, self.norm_bias, self.eps)
        elif self.norm == "rms":
            y = y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt()
            y = y if self.norm_weight is None else y * self.norm_weight
        return y.flatten(-2) if self.per_patch else y

    def __call__(self, x: Tensor) -> Tensor:
        """[..., P, d_v] -> [..., D]"""
        y = self.normalise(x)
        hidden = self.act(F.linear(y, self.w1, self.b1))
        if self.gate is not None:
            hidden = hidden * F.linear(y, self.gate, self.gate_bias)
        return F.linear(hidden, self.w2, self.b2)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """The model's projector (patch merger) as a function of single tokens.

    Attributes:
        apply: maps tower features [..., P, d_v] to tokens [..., D], in the model's dtype.
        exact: the same in float32, whatever the model's dtype; answers float32.
        mlp: its weights in float32 where it is a normalisation (or none) and a two-layer perceptron; raises
            `UnsupportedPolicyError` where it is something else.
    """

    apply: Callable[[Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    mlp: Callable[[], Mlp]

"""The model's projector as policies may use it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor, nn

from ..errors import UnsupportedPolicyError
from ..ops import sent
from ..projection import Mlp, Projection
from .parts import Parts


class Projector:
    """The modules of a model that make its rows out of patches.

    Exact copies are made when a policy first computes with them, and made anew once a weight is replaced, moved or
    written to. (Writing through `.data` leaves no trace: wrap again after that.)
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self._copies: dict[tuple[str, torch.dtype], tuple[list, nn.Module]] = {}
        self._mlp: tuple[list[nn.Module], Mlp] | None = None

    def of(self, patches: int, width: int) -> Projection:
        """What a policy is shown where tokens are made of so many patches of such width.

        Raises:
            UnsupportedPolicyError: when called, if the weights are quantised or offloaded (`exact`, `mlp`), or are no
                two-layer perceptron (`mlp`).
        """

        def exact(x: Tensor) -> Tensor:
            rounds = x.is_cuda and _rounds(self._parts.module(self._parts.adapter.merger))
            dtype = torch.float64 if rounds else torch.float32
            return self._run(lambda path: self._copy(path, dtype), x, dtype).float()

        def mlp() -> Mlp:
            used: list[nn.Module] = []

            def noted(path: str) -> nn.Module:
                used.append(self._copy(path, torch.float32))
                return used[-1]

            x = torch.randn(8, patches, width, generator=torch.Generator().manual_seed(0))
            x = sent(x, self._weight.device)
            with torch.no_grad():
                expected = self._parts.adapter.project(noted, x)
                if self._mlp is None or any(map(operator.is_not, self._mlp[0], used)):
                    self._mlp = used, self._described(used, x, expected)
            return self._mlp[1]

        return Projection(apply=lambda x: self._run(self._parts.module, x, self._weight.dtype), exact=exact, mlp=mlp)

    def _copy(self, path: str, dtype: torch.dtype) -> nn.Module:
        module = self._parts.module(path)
        state = [
            (one.data_ptr(), one.device, one.dtype, None if one.is_inference() else one._version)
            for one in module.parameters()
        ]
        known, copied = self._copies.get((path, dtype), (None, None))
        if known != state:
            copied = _plain_copy(module, dtype)
            self._copies[path, dtype] = state, copied
        return copied

    def _described(self, roots: list[nn.Module], x: Tensor, expected: Tensor) -> Mlp:
        """The description, among all that the modules allow, that computes the same."""
        for mlp in _candidates(roots, x.shape[1:]):
            if torch.allclose(mlp(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
                return mlp
        raise UnsupportedPolicyError(
            f"the projector of {self._parts.adapter.model_type!r} is no two-layer perceptron, plain or gated, so its "
            "sensitivity has no closed form: use estimator='zeroth_order'."
        )

    @property
    def _weight(self) -> Tensor:
        return next(self._parts.module(self._parts.adapter.merger).parameters())

    @torch.no_grad()
    def _run(self, find: Callable[[str], nn.Module], x: Tensor, dtype: torch.dtype) -> Tensor:
        """[..., P, d_v] -> [..., D], on the device of x."""
        rows = x.reshape(-1, *x.shape[-2:])
        if not self._weight.is_meta:  # offloaded modules move their input themselves
            rows = rows.to(self._weight.device)
        if dtype.is_floating_point:  # quantised weights take the dtype of the model
            rows = rows.to(dtype)
        return self._parts.adapter.project(find, rows).to(x.device).view(*x.shape[:-2], -1)


def _rounds(merger: nn.Module) -> bool:
    """Whether a GPU may round float32 products to ten bits (TF32), in which small differences drown."""
    convolves = any(isinstance(one, nn.modules.conv._ConvNd) for one in merger.modules())
    try:
        return torch.backends.cuda.matmul.allow_tf32 or (convolves and torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # chosen by the newer names, which must not be mixed with these
        return True


def _plain_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if any(one.is_meta or not one.is_floating_point() for one in module.parameters()):
        raise UnsupportedPolicyError(
            "the policy computes the projector in float32, but its weights are quantised or offloaded: leave the "
            "projector out of quantisation and offloading, or use another estimator or policy."
        )
    return copy.deepcopy(module).to(dtype).eval()


def _candidates(roots: list[nn.Module], width: torch.Size) -> Iterator[Mlp]:
    """Two or three linear layers, an activation, and a normalisation before them or none."""
    modules = [module for root in roots for module in root.modules()]
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    acts = [one for one in modules if not list(one.children()) and not list(one.parameters())]
    norms = [None, *(module for module in modules if "Norm" in type(module).__name__)]
    for layers, act, norm in product(_orders(linears, width[0] * width[1]), acts, norms):
        scaled = {} if norm is None else _normalisation(norm, width)
        if scaled is not None:
            yield Mlp(act=act, **layers, **scaled)


def _orders(linears: list[nn.Linear], entering: int) -> Iterator[dict[str, Tensor | None]]:
    if len(linears) not in (2, 3) or any(one.in_features != entering for one in linears[:-1]):
        return
    *first, last = linears
    end = {"w2": last.weight, "b2": last.bias}
    if len(first) == 2:
        halves = [(one.weight, one.bias) for one in first]
    elif first[0].out_features == 2 * last.in_features:  # value and gate in one layer
        bias = (None, None) if first[0].bias is None else first[0].bias.chunk(2)
        halves = list(zip(first[0].weight.chunk(2), bias, strict=True))
    else:
        yield {"w1": first[0].weight, "b1": first[0].bias, **end}
        return
    for (w1, b1), (gate, gate_bias) in (halves, halves[::-1]):
        if w1.shape[0] == last.in_features:
            yield {"w1": w1, "b1": b1, "gate": gate, "gate_bias": gate_bias, **end}


def _normalisation(norm: nn.Module, width: torch.Size) -> dict | None:
    weight = getattr(norm, "weight", None)
    if weight is None or weight.numel() not in (width[1], width[0] * width[1]):
        return None
    return {
        "norm": "rms" if "RMS" in type(norm).__name__ else "layer",
        "per_patch": weight.numel() == width[1],
        "norm_weight": weight,
        "norm_bias": getattr(norm, "bias", None),
        "eps": getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 1e-6),
    }

from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tokenprune.ops import second_moment, sensitivity, zeroth_order
from tokenprune.projection import Mlp


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def directions(m, width):
    return F.normalize(randn(m, width, seed=7), dim=-1)


def random_mlp(patches, *, gate=False, norm="none", per_patch=True, act=F.gelu, width=5, hidden=9, out=7):
    entering = patches * width
    scale = width if per_patch else entering
    return Mlp(
        w1=randn(hidden, entering, seed=1) / entering**0.5,
        b1=randn(hidden, seed=2),
        w2=randn(out, hidden, seed=3),
        b2=randn(out, seed=4),
        gate=randn(hidden, entering, seed=5) / entering**0.5 if gate else None,
        gate_bias=randn(hidden, seed=6) if gate else None,
        act=act,
        norm=norm,
        per_patch=per_patch,
        norm_weight=None if norm == "none" else 1 + 0.3 * randn(scale, seed=8),
        norm_bias=randn(scale, seed=9) if norm == "layer" else None,
    )


def by_jacobian(mlp, encoder):
    """Root mean square of the derivative along a shared direction, from the explicit Jacobian in float64."""
    tensors = {one.name: getattr(mlp, one.name) for one in fields(mlp)}
    exact = replace(mlp, **{name: value.double() for name, value in tensors.items() if isinstance(value, torch.Tensor)})
    width = encoder.shape[-1]
    jacobian = torch.func.jacrev(lambda u, x: exact(x + u))
    at = torch.zeros(width, dtype=torch.float64)
    rows = [jacobian(at, x).square().sum().div(width).sqrt() for x in encoder.double().flatten(0, 1)]
    return torch.stack(rows).view(encoder.shape[:2]).float()


KINDS = {
    "plain": {},
    "swiglu": {"gate": True, "act": F.silu},
    "layer norm of each patch": {"norm": "layer"},
    "rms norm of each patch": {"norm": "rms"},
    "layer norm of all patches": {"norm": "layer", "per_patch": False},
    "rms norm of all patches": {"norm": "rms", "per_patch": False},
    "layer norm of each patch, swiglu": {"norm": "layer", "gate": True, "act": F.silu},
    "rms norm of all patches, swiglu": {"norm": "rms", "per_patch": False, "gate": True, "act": nn.SiLU(inplace=True)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patches", [1, 4])
def test_the_closed_form_is_the_norm_of_the_jacobian(kind, patches):
    mlp, encoder = random_mlp(patches, **KINDS[kind]), 3 * randn(2, 3, patches, 5)
    torch.testing.assert_close(second_moment(mlp, encoder), by_jacobian(mlp, encoder), rtol=1e-4, atol=0)


def test_a_normalisation_without_weights_and_no_biases():
    mlp = Mlp(w1=randn(9, 10), w2=randn(7, 9, seed=1), act=torch.tanh, norm="layer")
    encoder = randn(1, 4, 2, 5)
    torch.testing.assert_close(second_moment(mlp, encoder), by_jacobian(mlp, encoder), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kept", [0, 2**26], ids=["made anew", "kept"])
def test_in_blocks_and_with_or_without_kept_matrices_it_is_the_same(monkeypatch, kept):
    mlp, encoder = random_mlp(4, norm="rms"), randn(2, 30, 4, 5)
    expected = second_moment(replace(mlp, memo={}), encoder)
    monkeypatch.setattr(sensitivity, "BLOCK_ELEMENTS", 2000)
    monkeypatch.setattr(sensitivity, "KEPT_ELEMENTS", kept)
    torch.testing.assert_close(second_moment(mlp, encoder), expected)
    assert bool(mlp.memo) == (kept > 0)
    torch.testing.assert_close(second_moment(mlp, encoder), expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_whatever_mode_the_caller_is_in(mode):
    mlp, encoder = random_mlp(1), randn(1, 4, 1, 5)
    mlp = replace(mlp, w1=nn.Parameter(mlp.w1))
    expected = by_jacobian(mlp, encoder)
    for again in (mode, torch.no_grad):  # with what the first call kept
        with again():
            found = second_moment(mlp, encoder.clone())
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=0)
        assert not found.requires_grad


def test_central_differences_of_a_linear_map_are_its_images():
    weight, u = randn(3, 8), directions(6, 4)
    expected = (weight.view(3, 2, 4).sum(1) @ u.T).norm(dim=0).mean()  # the same direction on both patches
    found = zeroth_order(lambda x: x.flatten(-2) @ weight.T, randn(2, 5, 2, 4), u, 0.01)
    torch.testing.assert_close(found, expected.expand(2, 5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("elements", [1, 700, 5000])
def test_central_differences_in_blocks_equal_a_loop(monkeypatch, elements):
    mlp, encoder, u, h = random_mlp(2), randn(2, 3, 2, 5), directions(6, 5), 0.05
    slow = [sum((mlp(x + h * d) - mlp(x - h * d)).norm() for d in u) / 6 / (2 * h) for x in encoder.flatten(0, 1)]
    expected = torch.stack(slow).view(2, 3)
    seen = []

    def project(x):
        seen.append(x[..., 0, 0].numel())
        return mlp(x)

    monkeypatch.setattr(sensitivity, "BLOCK_ELEMENTS", elements)
    torch.testing.assert_close(zeroth_order(project, encoder, u, h), expected, rtol=1e-4, atol=0)
    assert max(seen) <= max(1, elements // 80)


def test_half_precision_features_are_moved_in_float32():
    """In bfloat16 a step of 0.01 / sqrt(d_v) is lost on features of this size."""
    mlp, encoder, u = random_mlp(1, width=64), 4 * randn(1, 20, 1, 64).bfloat16(), directions(16, 64)
    expected = zeroth_order(mlp, encoder.float(), u, 0.01)
    torch.testing.assert_close(zeroth_order(mlp, encoder, u, 0.01), expected)
    naive = zeroth_order(lambda x: mlp(x.bfloat16().float()), encoder, u, 0.01)
    assert (naive / expected - 1).abs().median() > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_many_directions_approach_the_closed_form(kind):
    """The mean of a norm lies below the root of the mean square, and near it where D is large."""
    mlp, encoder = random_mlp(2, **KINDS[kind], width=12, hidden=40, out=60), randn(1, 20, 2, 12)
    ratio = zeroth_order(mlp, encoder, directions(400, 12), 0.01) / second_moment(mlp, encoder)
    assert ratio.max() < 1.02
    assert ratio.min() > 0.9

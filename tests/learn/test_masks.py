import pytest
import torch

from tokenprune.errors import UnsupportedModelError
from tokenprune.learn import losses
from tokenprune.learn.masks import log_gate, log_retention, retention_mask, straight_through


def test_gates_sum_to_the_budget_and_follow_the_scores():
    u, k = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 7.5, 25.0, 49.0])
    for temperature in (0.05, 1.0, 10.0):
        gates = log_retention(u, k, temperature).exp()
        torch.testing.assert_close(gates.sum(1), k, atol=1e-3, rtol=0)
        assert torch.equal(gates.argsort(1), u.argsort(1)) or temperature < 1
    hard = log_retention(u, torch.tensor([5.0, 5.0, 5.0, 5.0]), 1e-3).exp()
    assert torch.equal(hard.round().sum(1), torch.full((4,), 5.0))
    assert (hard[torch.arange(4)[:, None], u.topk(5).indices] > 0.5).all()


def test_the_gradient_of_gates_is_that_of_differences():
    u = torch.randn(2, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    k = torch.tensor([2.0, 6.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda u: log_retention(u, k, 0.7), u, eps=1e-5, atol=1e-3)
    log_retention(u, k, 0.7).exp().sum().backward()
    torch.testing.assert_close(u.grad, torch.zeros_like(u), atol=1e-6, rtol=0)  # the sum is fixed


def test_straight_through_is_hard_ahead_and_soft_back():
    soft = torch.tensor([0.2, 0.8], requires_grad=True)
    out = straight_through(soft, torch.tensor([0.0, 1.0]))
    assert out.tolist() == [0.0, 1.0]
    out.sum().backward()
    assert soft.grad.tolist() == [1.0, 1.0]


def test_a_shut_gate_passes_back_what_opening_it_would_change():
    generator = torch.Generator().manual_seed(2)
    scores, values = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))

    def answer(gate):
        return (scores + log_gate(gate)).softmax(0) @ values

    gate = torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64, requires_grad=True)
    answer(gate).backward()
    opened = torch.stack([answer(gate.detach() + 1e-6 * torch.eye(6, dtype=torch.float64)[i]) for i in range(6)])
    torch.testing.assert_close(gate.grad, (opened - answer(gate.detach())) / 1e-6, atol=1e-4, rtol=1e-3)
    assert (gate.grad[[1, 3, 4]].abs() > 1e-2).all()
    kept = (scores[[0, 2, 5]].softmax(0) * values[[0, 2, 5]]).sum()
    torch.testing.assert_close(answer(gate.detach()), kept, atol=1e-4, rtol=0)


def test_a_mask_is_causal_hides_padding_and_holds_the_gates():
    x = torch.zeros(2, 4, 8)
    given = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]])
    mask = retention_mask(given, torch.tensor([[0, 1], [1, 2]]), torch.tensor([-0.5, -3.0]), x)
    assert mask.shape == (2, 1, 4, 4)
    low = torch.finfo(torch.float32).min
    assert mask[0, 0, 3].tolist() == [0, -0.5, 0, 0]
    assert mask[0, 0, 1].tolist() == [0, -0.5, low, low]
    assert mask[1, 0, 3].tolist() == [low, 0, -3.0, 0]  # padding sees itself
    none = retention_mask(None, torch.zeros(0, 2).long(), torch.zeros(0), x)
    assert none[0, 0, 2].tolist() == [0, 0, 0, low]
    with pytest.raises(UnsupportedModelError, match="masks in front of its decoder"):
        retention_mask({"full_attention": None}, torch.zeros(0, 2).long(), torch.zeros(0), x)


def test_losses_are_what_they_say():
    u, y = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 2.0, 4.0]])
    z = losses.standardised_log(y)
    torch.testing.assert_close(z, torch.tensor([[-1.0, 0.0, 1.0]]))
    assert losses.regression(u, z) == 1.0
    shares = y / 7
    assert losses.ranking(shares.log(), y) == pytest.approx(-(shares * shares.log()).sum().item())
    assert losses.ranking(u, y) > losses.ranking(shares.log(), y)
    assert losses.keep_rate(torch.tensor([[0.5, 1.0]]), 0.25) == 0.25
    logits, ids = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2])
    assert losses.distillation(logits, logits + 3) == pytest.approx(0, abs=1e-6)
    p, q = torch.randn(3, 5).softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(losses.distillation(logits, p.log()), (p * (p / q).log()).sum() / 3)
    torch.testing.assert_close(losses.words(logits, ids), -q.log()[torch.arange(3), ids].mean())

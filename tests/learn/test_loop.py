"""The loop, on a module that learns a line."""

import json

import pytest
import torch
from torch import nn

from tokenprune.errors import InvalidArgumentError, TrainingError
from tokenprune.learn import Plan, train
from tokenprune.learn.loop import CURVE, FACTS, LOG, STATE
from tokenprune.predictors import Predictor


class Line(Predictor):
    kind = "line"

    def __init__(self, *, width: int = 3, base: dict | None = None):
        super().__init__(base=base)
        self.linear = nn.Linear(width, 1)


def module():
    torch.manual_seed(0)
    return Line()


def step_of(line, stop_at=None, bad=float("nan")):
    """Squared error on made points; random numbers of its own, so that a test sees whether these come back."""

    def step(number, over):
        if number == stop_at:
            return {"loss": line.linear.weight.sum() * bad}
        x = torch.randn(8, 3)
        lost = (line.linear(x).squeeze(-1) - x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(8)).square().mean()
        return {"loss": lost, "over": torch.tensor(over)}

    return step


def weights(line):
    return torch.cat([one.detach().flatten() for one in line.parameters()])


def test_it_learns_and_writes_what_it_did(tmp_path):
    line = module()
    facts = train(line, step_of(line), Plan(steps=150, rate=0.05), tmp_path, about={"data": "points"})
    assert torch.allclose(line.linear.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.1)
    assert facts == json.loads((tmp_path / FACTS).read_text())
    assert (facts["data"], facts["parameters"], facts["steps"]) == ("points", 4, 150)
    lines = [json.loads(one) for one in (tmp_path / LOG).read_text().splitlines()]
    assert [one["step"] for one in lines] == list(range(150))
    assert lines[75]["over"] == 0.5
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    assert (tmp_path / CURVE).stat().st_size > 1000
    assert not line.training
    again = Line.from_pretrained(tmp_path)
    assert torch.equal(weights(again), weights(line))
    assert not list(tmp_path.glob("*.pt*")), "nothing is pickled"


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    plan = Plan(steps=20, save_every=6, accumulate=2)
    whole = module()
    train(whole, step_of(whole), plan, tmp_path / "whole")
    broken = module()

    def stops(number, over):
        if number == 2 * 15:
            raise KeyboardInterrupt
        return step_of(broken)(number, over)

    with pytest.raises(KeyboardInterrupt):
        train(broken, stops, plan, tmp_path / "broken")
    torch.manual_seed(99)
    other = Line()  # weights of its own, which the saved ones replace
    train(other, step_of(other), plan, tmp_path / "broken")
    assert torch.equal(weights(other), weights(whole))
    assert (tmp_path / "broken" / LOG).read_text() == (tmp_path / "whole" / LOG).read_text()


def test_a_finished_run_is_not_run_again(tmp_path):
    line = module()
    train(line, step_of(line), Plan(steps=3), tmp_path)
    other = module()
    train(other, lambda number, over: pytest.fail("a step"), Plan(steps=3), tmp_path)
    assert torch.equal(weights(other), weights(line))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(tmp_path, bad):
    line = module()
    with pytest.raises(TrainingError, match=rf"loss is -?{bad} at step 8.*keeps what was saved last"):
        train(line, step_of(line, stop_at=8, bad=bad), Plan(steps=20, save_every=5), tmp_path)
    kept = Line.from_pretrained(tmp_path)
    good = module()
    with pytest.raises(TrainingError):
        train(good, step_of(good, stop_at=5), Plan(steps=20), tmp_path / "good")
    assert torch.equal(weights(kept), weights(good))
    assert weights(line).isfinite().all()


def test_a_gradient_that_is_no_number_stops_it_too(tmp_path):
    line = module()

    def step(number, over):
        return {"loss": (line.linear.weight * 0).sqrt().sum()}

    with pytest.raises(TrainingError, match="the norm of the gradient is nan at step 0"):
        train(line, step, Plan(steps=2), tmp_path)


def test_other_settings_are_refused_by_name(tmp_path):
    line = module()
    train(line, step_of(line), Plan(steps=3), tmp_path, about={"data": "a"})
    with pytest.raises(TrainingError, match=r"data='a' there, 'b' here, steps=3 there, 4 here.*another folder"):
        train(line, step_of(line), Plan(steps=4), tmp_path, about={"data": "b"})
    (tmp_path / STATE).write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"training\.safetensors cannot be read.*delete it"):
        train(line, step_of(line), Plan(steps=3), tmp_path)


def test_batches_of_a_step_are_averaged(tmp_path):
    x = torch.randn(4, 3)
    one, two = module(), module()
    train(one, lambda n, over: {"loss": one.linear(x).square().mean()}, Plan(steps=1), tmp_path / "one")
    halves = Plan(steps=1, accumulate=2)
    train(two, lambda n, over: {"loss": two.linear(x[2 * n : 2 * n + 2]).square().mean()}, halves, tmp_path / "two")
    torch.testing.assert_close(weights(one), weights(two))


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("accumulate", 0), ("save_every", -1), ("rate", 0.0)])
def test_a_plan_refuses_what_makes_no_sense(name, value):
    with pytest.raises(InvalidArgumentError, match=f"{name}={value}"):
        Plan(**{"steps": 1, name: value})


def test_the_rate_rises_and_falls():
    plan = Plan(steps=100, rate=1.0, warmup=0.1)
    assert [plan.rate_at(step) for step in (0, 9, 10, 55)] == pytest.approx([0.1, 1.0, 1.0, 0.5])
    assert plan.rate_at(99) < 0.01
    twice = Plan(steps=100, rate=1.0, warmup=0.1, cycles=((0.8, 1.0), (0.2, 0.5)))
    assert [twice.rate_at(step) for step in (0, 7, 44, 80, 81, 91)] == pytest.approx([0.125, 1.0, 0.5, 0.25, 0.5, 0.25])
    assert max(twice.rate_at(79), twice.rate_at(99)) < 0.01

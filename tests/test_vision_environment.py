"""Wrapped vision transformers among other things: copies, threads, failures, gradients, precisions, compilation."""

import copy
import threading

import pytest
import torch

import tokenprune
from tests.vision_probes import (
    POLICIES,
    TOLERANCE,
    blocks_of,
    by_hand,
    difference,
    every_tower,
    few_towers,
    identical,
    suits,
)
from tokenprune import RandomBlocks, ToMe
from tokenprune.errors import UnsupportedPolicyError


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@few_towers
def test_a_copy_is_plain(tower):
    model = tower.model()
    dense = tower.run(model)
    with tokenprune.wrap(model, ToMe(r=3)) as handle:
        reduced = tower.run(model)
        other = copy.deepcopy(model)
        assert identical(tower.run(other), dense)
        with tokenprune.wrap(other, ToMe(r=3)):
            assert identical(tower.run(other), reduced)
        assert identical(tower.run(model), reduced)
        handle.remove()
    assert identical(tower.run(other), dense)


@few_towers
def test_two_models_one_after_the_other(tower):
    models = [tower.model() for _ in range(2)]
    policies = [ToMe(r=3), RandomBlocks(keep=0.5)]
    expected = [by_hand(tower, *pair)[0] for pair in zip(models, policies, strict=True)]
    handles = [tokenprune.wrap(*pair) for pair in zip(models, policies, strict=True)]
    for i in (0, 1, 1, 0):
        assert difference(tower.run(models[i]), expected[i]) < TOLERANCE
    handles[0].remove()
    assert difference(tower.run(models[1]), expected[1]) < TOLERANCE


@few_towers
def test_one_model_in_threads(tower):
    """Batches of several sizes at once."""
    model = tower.model()
    with tokenprune.wrap(model, ToMe(r=3)):
        batches = [tower.inputs(n) for n in (1, 2, 3, 4)]
        expected = [tower.run(model, batch) for batch in batches]
        wrong = []

        def work(i):
            with torch.no_grad():
                for _ in range(5):
                    try:
                        if not identical(tower.run(model, batches[i]), expected[i]):
                            wrong.append(i)
                    except Exception as error:
                        wrong.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@few_towers
@pytest.mark.parametrize("where", ["mlp", "block"])
def test_a_forward_that_fails_leaves_the_next_alone(tower, where):
    model = tower.model()
    expected, _ = by_hand(tower, model, ToMe(r=3))
    block = blocks_of(tower, model)[2]
    module = block if where == "block" else getattr(block, "mlp", None) or block.intermediate
    with tokenprune.wrap(model, ToMe(r=3)):

        def fail(*given):
            raise RuntimeError("out of memory")

        hook = module.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            tower.run(model)
        hook.remove()
        assert difference(tower.run(model), expected) < TOLERANCE


@few_towers
@pytest.mark.parametrize("name", ["tome", "evit", "random", "sta"])
def test_gradients(tower, name):
    if not suits(tower, name):
        return
    policy, found = POLICIES[name](), []
    for how in ("by hand", "wrapped"):
        model, inputs = tower.model(), tower.inputs(2)
        inputs["pixel_values"].requires_grad_()
        with torch.enable_grad():
            if how == "wrapped":
                tokenprune.wrap(model, policy)
                out = tower.run(model, inputs)
            else:
                out, _ = by_hand(tower, model, policy, inputs)
            sum(value.square().mean() for value in out.values()).backward()
        gradients = {one: value.grad for one, value in model.named_parameters() if value.grad is not None}
        found.append({"pixels": inputs["pixel_values"].grad, **gradients})
    assert len(found[0]) > 40
    assert difference(found[1], found[0]) < TOLERANCE


@few_towers
def test_gradient_checkpointing(tower):
    """Blocks that run twice would be shortened twice."""
    model = tower.model().train()
    if tower.timm:
        model.set_grad_checkpointing()
    else:
        model.gradient_checkpointing_enable()
    with tokenprune.wrap(model, ToMe(r=3)), torch.enable_grad():
        with pytest.raises(UnsupportedPolicyError, match="checkpointing"):
            tower.run(model)
        with torch.no_grad():
            tower.run(model.eval())


@every_tower
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(tower, dtype):
    """Another choice here and there, but the same kind of answer."""
    model = tower.model(dtype=dtype)
    for name in POLICIES:
        if suits(tower, name):
            expected, _ = by_hand(tower, tower.model(), POLICIES[name]())
            with tokenprune.wrap(model, POLICIES[name]()):
                found = tower.run(model)
            for key, value in found.items():
                assert value.dtype == dtype
                assert value.shape == expected[key].shape
                assert value.isfinite().all()


@few_towers
def test_autocast_does_not_reach_the_selection(tower):
    model = tower.model()
    with tokenprune.wrap(model, ToMe(r=3)), torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(value.isfinite().all() for value in tower.run(model).values())


@few_towers
def test_compiled_equals_uncompiled(tower):
    model = tower.model()
    inputs = tower.inputs(3)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")

    def logits(of):
        out = of(inputs["pixel_values"]) if tower.timm else of(**inputs)
        return out if tower.timm else out[0]

    dense = logits(compiled)
    with tokenprune.wrap(model, ToMe(r=3)):
        expected = logits(model)
        assert torch.equal(logits(compiled), expected)
        assert torch.equal(logits(compiled), expected)
        assert (dense - expected).abs().max() > 1e-2
    assert torch.equal(logits(compiled), dense)

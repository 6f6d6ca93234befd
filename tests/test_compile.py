"""torch.compile: tracing is what can go wrong, so the eager backend is enough."""

import pytest
import torch
from transformers import CompileConfig

import tokenprune
from tests import probes, reference
from tests.families import LLAVA, QWEN2_5_VL, REPEATABLE
from tests.probes import generate, logits, new_tokens


@pytest.fixture
def every_third(every_third_somewhere):
    return every_third_somewhere


@pytest.mark.parametrize("family", [LLAVA, QWEN2_5_VL], ids=lambda family: family.name)
def test_compiled_decode(family, every_third):
    """`generate` compiles its decode steps over a static cache, without a graph break, on a pruned prompt."""
    images = REPEATABLE if every_third.stage == "projector" else (1,)  # layers of a static cache have no padding
    model, inputs = family.model(), family.inputs(images)
    settings = CompileConfig(backend="eager", mode=None, fullgraph=True)
    settings._compile_all_devices = True  # else generate compiles on GPUs only
    compiled = {"cache_implementation": "static", "compile_config": settings}
    dense = logits(generate(model, inputs))
    with tokenprune.wrap(model, every_third):
        out = generate(model, inputs, **compiled)
    keep = probes.every_third(family, model, images)
    expected = reference.logits(model, inputs, keep, new_tokens(out, inputs))
    assert (logits(out) - expected).abs().max() < family.tolerance
    assert (logits(generate(model, inputs, **compiled)) - dense).abs().max() < family.tolerance


def test_compiled_forward(every_third):
    """torch.compile works when the model is wrapped first."""
    model, inputs = LLAVA.model(), LLAVA.inputs(REPEATABLE)
    keep = probes.every_third(LLAVA, model, REPEATABLE)
    expected = reference.logits(model, inputs, keep, torch.zeros(2, 1).long())[:, 0]
    with tokenprune.wrap(model, every_third):
        forward = torch.compile(model.forward, backend="eager")
        assert (forward(**inputs).logits[:, -1] - expected).abs().max() < LLAVA.tolerance

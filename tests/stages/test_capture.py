"""What is captured in a vision tower: what a policy needs of it, and nothing for one that needs nothing."""

import pytest
import torch

import tokenprune
from tests.families import BY_NAME
from tests.probes import same, snapshot
from tokenprune import CDPruner, DivPrune, FasterVLM, Random, Uniform
from tokenprune.adapters import Features, lookup
from tokenprune.stages import features as watching

NEED_NOTHING = {"random": Random, "uniform": Uniform, "cdpruner": CDPruner, "divprune": DivPrune}
FAMILIES = [BY_NAME[name] for name in ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl")]


@pytest.fixture
def noted(monkeypatch):
    """Every note about an encoding that is begun."""
    notes = []

    def begun(**given):
        notes.append(Features(**given))
        return notes[-1]

    monkeypatch.setattr(watching, "Features", begun)
    return notes


def inside(model, family):
    """Hooks, attributes and configs of everything in the towers and mergers."""
    adapter, found = lookup(family.model_type), {}
    for path in {*adapter.towers, adapter.merger}:
        for name, module in model.base_model.get_submodule(path).named_modules(prefix=path):
            hooks = len(module._forward_pre_hooks), len(module._forward_hooks)
            found[name] = hooks, sorted(vars(module)), id(getattr(module, "config", None))
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("name", NEED_NOTHING)
def test_a_policy_that_needs_nothing_of_the_tower_leaves_it_alone(family, name, noted):
    model, inputs = family.model(), family.inputs()
    with torch.no_grad():
        model(**inputs)
        before, whole = inside(model, family), snapshot(model)
        assert before
        with tokenprune.wrap(model, NEED_NOTHING[name](keep=2)) as handle:
            assert inside(model, family) == before
            model(**inputs)
            assert inside(model, family) == before
            assert handle.report().units
    assert noted
    assert all(not note.entered and not note.tower and not note.runs for note in noted)
    assert same(whole, snapshot(model))


def test_what_a_policy_needs_is_captured_where_anything_is_pruned(noted):
    family = BY_NAME["llava"]
    model, inputs = family.model(), family.inputs()
    before = inside(model, family)
    with torch.no_grad(), tokenprune.wrap(model, FasterVLM(keep=2)):
        changed = [name for name, found in inside(model, family).items() if found != before[name]]
        assert len(changed) == 2  # the attention of the layer that is read, and what enters the projector
        model(**inputs)
    assert len(noted[-1].tower) == 1
    noted.clear()
    with torch.no_grad(), tokenprune.wrap(model, FasterVLM(keep=1.0)):
        model(**inputs)
    assert not noted[-1].tower

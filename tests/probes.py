"""What tests look at a model and a policy with."""

import pytest
import torch

from tests import reference
from tests.families import IMAGE, LLAVA, VIDEO

STEPS = 7  # the prefill and six decode steps
TOLERANCE = 2e-5  # float32 noise of a 4-layer decoder whose logits spread over +-5; a wrong position costs 0.1 to 4

# (indices for k of n tokens, what the error about them has to say)
NO_SELECTIONS = [
    (lambda k, n: torch.arange(k + 1), "shape"),
    (lambda k, n: torch.arange(k).flip(0), "ascending"),
    (lambda k, n: torch.zeros(k, dtype=torch.long), "distinct"),
    (lambda k, n: torch.arange(n - k + 1, n + 1), "inside"),
    (lambda k, n: torch.arange(-1, k - 1), "inside"),
    (lambda k, n: torch.arange(k).float(), "long"),
]


def snapshot(model):
    """Everything that could differ after wrap and remove."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    more = ("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            name: [list(getattr(module, kind)) for kind in (*hooks, *more)] for name, module in model.named_modules()
        },
        "config": model.config.to_dict(),
        "configs": {name: id(getattr(module, "config", None)) for name, module in model.named_modules()},
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
    }


def same(a, b):
    weights = all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
    return weights and all(a[part] == b[part] for part in a if part != "weights")


class NothingHalfWrapped:
    """Tests of a class that give a `model` a bad argument: it is left as it was."""

    @pytest.fixture
    def model(self):
        model = LLAVA.model()
        model(**LLAVA.inputs())  # transformers installs its own lazy hooks on first use
        return model

    @pytest.fixture(autouse=True)
    def nothing_is_half_wrapped(self, model):
        before = snapshot(model)
        yield
        assert same(before, snapshot(model))


def spy(seen, needs):
    def relevance(tokens):
        seen.append(tokens)
        return tokens.features.float().sum(-1)

    relevance.needs = frozenset(needs)
    return relevance


def generate(model, inputs, **kwargs):
    """Greedy by default; never a placeholder, which the dense model would take for an image when it reads it again."""
    kwargs = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO], **kwargs}
    return model.generate(**inputs, **kwargs, return_dict_in_generate=True, output_logits=True, output_scores=True)


def logits(output):
    return torch.stack(output.logits, 1)


def new_tokens(output, inputs):
    return output.sequences[:, inputs["input_ids"].shape[1] :]


def protected(family, model, images):
    """[B, L] bool, placeholders that hold no patch."""
    inputs = family.inputs(images)
    places = torch.zeros_like(inputs["input_ids"]).bool()
    for b, i in (place for image in family.places(images) for place in image):
        places[b, i] = True
    return (reference.visual(inputs) & ~places) | reference.newlines(model, inputs)


def every_third(family, model, images):
    """[B, L] bool: of every image the patches 1, 4, 7 ..., what is no patch, and all text."""
    apart = protected(family, model, images)
    keep = ~reference.visual(family.inputs(images)) | apart
    for places in family.places(images):
        patches = [(b, i) for b, i in places if not apart[b, i]]
        for b, i in patches[1::3][: len(patches) // 3]:
            keep[b, i] = True
    return keep


def with_answers(report, selections):
    """(unit, selection, which of its units) of every unit that lost something; units of a size are one call."""
    groups = {}
    for unit in report.units:
        groups.setdefault((unit.total, unit.kept, unit.grid), []).append(unit)
    for group, selection in zip(groups.values(), selections, strict=True):
        yield from ((unit, selection, i) for i, unit in enumerate(group))


def merged_rows(report, selections):
    """(sample, position) -> [D], where a selection brought features of its own."""
    rows = {}
    for unit, selection, i in with_answers(report, selections):
        if selection.features is not None:
            slots = unit.slots[unit.indices].tolist()
            rows |= {(unit.sample, slot): row for slot, row in zip(slots, selection.features[i], strict=True)}
    return rows


def mixing(inputs, report, selections):
    """Per sample [L, L]: every survivor is the mean of the tokens it stands for, by the weights of the selections."""
    batch, length = inputs["input_ids"].shape
    mix = [torch.eye(length) for _ in range(batch)]
    for unit, selection, i in with_answers(report, selections):
        weights = selection.merge_weights(unit.total)[i]
        for place, slot in enumerate(unit.slots[unit.indices].tolist()):
            carried = unit.source == place
            mix[unit.sample][slot] = 0
            mix[unit.sample][slot, unit.slots[carried]] = weights[carried]
    return mix

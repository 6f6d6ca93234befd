"""The stage inside the language model, where no test of the whole looks."""

from dataclasses import dataclass

import pytest
import torch

import tokenprune
from tests import reference
from tests.families import BY_NAME, LLAVA
from tokenprune import FastV, SparseVLM


def test_policies_compute_in_float32_under_autocast():
    """Autocast would make matrix products of scores and selections narrow."""
    seen = []

    @dataclass(kw_only=True)
    class Spy(SparseVLM):
        def product(self, of):
            seen.append((of, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))

        def raters(self, x, visual, text):
            self.product("raters")
            return text

        def score(self, attention, event):
            self.product("score")
            return super().score(attention, event)

        def select(self, tokens, k):
            self.product("select")
            return super().select(tokens, k)

    model = LLAVA.model()
    policy = Spy(layers=(0, 1, 2), keeps=(0.5, 0.3, 0.2))
    with tokenprune.wrap(model, policy), torch.autocast("cpu", torch.bfloat16):
        model(**LLAVA.inputs((2, 1)))
    assert {of for of, _ in seen} == {"raters", "score", "select"}
    assert {dtype for _, dtype in seen} == {torch.float32}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_later_image_that_nothing_leaves_still_sees_itself(enabled):
    """Layers whose cache is shorter than the first one's get masks of their own."""
    family = BY_NAME["paligemma"]
    model, inputs = family.model(), family.inputs((1,))
    ids, seen = torch.cat(2 * [inputs["input_ids"]], 1), []
    both = {
        name: torch.cat([rows, rows], 1) for name, rows in inputs.items() if rows.shape == inputs["input_ids"].shape
    }
    both["input_ids"] = inputs["input_ids"]
    total = int(reference.visual(inputs).sum())
    with torch.no_grad(), tokenprune.wrap(model, FastV(keep=total - 1, layer=1)) as handle:
        cache = model(**inputs, use_cache=True).past_key_values
        handle.policies[0].keep = total  # nothing leaves the second image
        handle.enabled = enabled
        for layer in reference.text_decoder(model).layers:
            layer.register_forward_pre_hook(lambda *given: seen.append(given[2]["attention_mask"]), with_kwargs=True)
        model(**{**inputs, **both}, past_key_values=cache)
    for mask in seen:
        inner = mask[0, 0, :, -ids.shape[1] // 2 :][reference.visual(inputs)[0]]
        assert (inner if mask.dtype == torch.bool else inner == 0)[:, reference.visual(inputs)[0]].all()

"""The stage inside the language model, where no test of the whole looks."""

from dataclasses import dataclass

import torch

import tokenprune
from tests.families import LLAVA
from tokenprune import SparseVLM


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

"""Events whose tokens leave the caches of earlier layers, too."""

from dataclasses import dataclass

import pytest
import torch
from transformers import DynamicCache

import tokenprune
from tests.families import BY_NAME, LLAVA, QWEN2_5_VL
from tests.probes import TOLERANCE, generate, logits
from tests.reference import text_decoder
from tokenprune import Event, FastV, LayerPolicy, PruneVidInside, Selection, UnsupportedModelError

STEPS = 4


@dataclass(kw_only=True)
class Forgetting(LayerPolicy):
    """Keeps every other token of those left in front of some layers; layers before the last of them forget."""

    drops: tuple = (1, 3)
    forget: bool = True
    compact: bool = False
    budgeted = True

    @property
    def positions(self):
        return "compact" if self.compact else "original"

    def events(self, depth):
        last = len(self.drops) - 1
        return tuple(Event(drop=d, number=i, forget=self.forget and i == last) for i, d in enumerate(self.drops))

    def count(self, event, total):
        return max(1, total // 2 ** (event.number + 1))

    def select(self, tokens, k):
        return Selection.subset(torch.arange(1, 2 * k, 2).clamp_max(tokens.shape[1] - 1).expand(tokens.shape[0], k))


def by_hand(model, inputs, policy):
    """Logits [STEPS, V] of one prompt: its cache is taken apart by hand, and the unwrapped model goes on with it."""
    with tokenprune.wrap(model, policy) as handle:
        out = model(**inputs, use_cache=True)
        report = handle.report()
    length = inputs["input_ids"].shape[1]
    visual = {int(slot) for unit in report.units for slot in unit.slots}
    left = [torch.arange(length)]
    halves = [unit.slots for unit in report.units]
    for _ in policy.drops:
        shares = [max(1, unit.total // 2 ** len(left)) for unit in report.units]
        halves = [slots[1::2][:k] for slots, k in zip(halves, shares, strict=True)]
        kept = {int(slot) for slots in halves for slot in slots}
        left.append(torch.tensor([i for i in range(length) if i not in visual or i in kept]))
    cache = DynamicCache(config=text_decoder(model).config)
    for i, layer in enumerate(out.past_key_values.layers):
        held = left[sum(drop <= i for drop in policy.drops)]
        rows = torch.isin(held, left[-1]).nonzero()[:, 0]
        assert layer.keys.shape[2] == len(held)
        cache.update(layer.keys[:, :, rows], layer.values[:, :, rows], i)
    found = [out.logits[0, -1]]
    for step in range(STEPS - 1):
        token = found[-1].argmax()[None, None]
        position = torch.tensor([[length + step]])
        mask = torch.ones(1, cache.get_seq_length() + 1, dtype=torch.long)
        out = model(input_ids=token, past_key_values=cache, position_ids=position, attention_mask=mask)
        found.append(out.logits[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("drops", [(2,), (1, 3), (0, 2)], ids=str)
def test_decode_reads_what_is_left_in_every_layer(attention, drops):
    model, inputs = LLAVA.model(attention=attention), LLAVA.inputs((2,))
    with torch.no_grad():
        expected = by_hand(model, inputs, Forgetting(drops=drops, forget=False))
        with tokenprune.wrap(model, Forgetting(drops=drops)):
            found = logits(generate(model, inputs))[0, :STEPS]
        with tokenprune.wrap(model, Forgetting(drops=drops, forget=False)):
            remembered = logits(generate(model, inputs))[0, :STEPS]
    assert (found - expected).abs().max() < TOLERANCE
    assert (remembered - expected).abs().max() > 1e-3  # the test can fail


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "llava_onevision-video"])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("drops", [(2,), (0, 2), (1, 3)], ids=str)
def test_a_batch_with_left_padding_equals_its_prompts_alone(name, compact, drops):
    family = BY_NAME[name]
    compact &= family.name in ("llava", "llava_onevision-video")
    model, policy = family.model(), Forgetting(drops=drops, compact=compact)
    with tokenprune.wrap(model, policy) as handle:
        together = generate(model, family.inputs((1, 2)))
        lengths = [layer.keys.shape[2] for layer in together.past_key_values.layers]
        assert len({*lengths}) == 1  # after as many steps
        assert handle.report().events[-1].forgotten
        alone = generate(model, family.inputs((1,)))
    assert (logits(together)[0] - logits(alone)[0]).abs().max() < family.tolerance


def test_prunevid_leaves_caches_of_one_length():
    family = BY_NAME["llava_onevision-video"]
    model, inputs = family.model(), family.inputs((2,))
    for forget in (True, False):
        with torch.no_grad(), tokenprune.wrap(model, PruneVidInside(layers=(1,), forget=forget)) as handle:
            cache = model(**inputs, use_cache=True).past_key_values
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        assert (len({*lengths}) == 1) == forget
        assert lengths[-1] == handle.report().events[-1].lengths[0]


def test_two_turns():
    """A later turn with an image forgets, too, and what was there before stays."""
    model, inputs = LLAVA.model(), LLAVA.inputs((1,))
    with torch.no_grad(), tokenprune.wrap(model, Forgetting()) as handle:
        first = model(**inputs, use_cache=True)
        cache = first.past_key_values
        before = [layer.keys.clone() for layer in cache.layers]
        both = torch.cat([inputs["input_ids"], inputs["input_ids"]], 1)
        second = model(
            input_ids=inputs["input_ids"],
            pixel_values=inputs["pixel_values"],
            attention_mask=torch.ones_like(both),
            past_key_values=cache,
        )
        assert handle.report().events[-1].forgotten
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        assert len({*lengths}) == 1
        assert lengths[0] == 2 * before[0].shape[2]
        for layer, old in zip(cache.layers, before, strict=True):
            assert torch.equal(layer.keys[:, :, : old.shape[2]], old)
        assert torch.isfinite(second.logits).all()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("drops", [(0,), (0, 2), (1, 3), (3,)], ids=str)
def test_a_later_image_of_a_padded_batch(drops, forget, compact):
    """The first sample of a batch, whose cache has padding, goes on as it does alone."""
    model, policy = LLAVA.model(), Forgetting(drops=drops, forget=forget, compact=compact)

    def second_turn(images):
        first, second = LLAVA.inputs(images), LLAVA.inputs((1,) * len(images), seed=4)
        mask, steps, cache = first.pop("attention_mask"), [], None
        for given in (first, second, *({"input_ids": torch.full((len(images), 1), 20 + i)} for i in range(STEPS))):
            new = given["input_ids"].shape[1]
            if cache is not None:
                mask = torch.cat([mask, given.pop("attention_mask", torch.ones(len(images), new).long())], 1)
            positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -new:]
            out = model(**given, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits[0, -1])
        return torch.stack(steps)

    with torch.no_grad(), tokenprune.wrap(model, policy):
        assert (second_turn((1, 3)) - second_turn((1,))).abs().max() < TOLERANCE


def test_what_left_before_is_forgotten_where_nothing_else_leaves():
    """So that a prompt does not depend on what leaves others of its batch."""
    model, inputs = LLAVA.model(), LLAVA.inputs((1,))
    with torch.no_grad(), tokenprune.wrap(model, [FastV(keep=5, layer=1), Forgetting(drops=(3,))]):
        cache = model(**inputs, use_cache=True).past_key_values
    assert len({layer.keys.shape[2] for layer in cache.layers}) == 1


def test_the_cache_is_counted_as_small_as_it_is():
    model, inputs = LLAVA.model(), LLAVA.inputs((1,))
    with torch.no_grad(), tokenprune.wrap(model, Forgetting()) as handle:
        cache, report = model(**inputs, use_cache=True).past_key_values, handle.report()
    held = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in cache.layers)
    assert report.cost()["kv_bytes_pruned"] == held


@pytest.mark.parametrize("which", ["static", "sliding"])
def test_caches_that_cannot_forget_are_refused(which):
    family = LLAVA if which == "static" else BY_NAME["gemma3"]
    model, inputs = family.model(), family.inputs((1,))
    given = {"cache_implementation": "static"} if which == "static" else {}
    with tokenprune.wrap(model, Forgetting()):
        with pytest.raises(UnsupportedModelError, match="cannot forget single tokens"):
            model.generate(**inputs, max_new_tokens=2, do_sample=False, **given)


def test_nothing_is_forgotten_without_a_cache():
    model, inputs = QWEN2_5_VL.model(), QWEN2_5_VL.inputs((1,))
    with torch.no_grad(), tokenprune.wrap(model, Forgetting()):
        out = model(**inputs, use_cache=False).logits
    with torch.no_grad(), tokenprune.wrap(model, Forgetting(forget=False)):
        assert torch.equal(model(**inputs, use_cache=False).logits, out)

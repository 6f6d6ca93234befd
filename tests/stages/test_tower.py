"""Taps inside the vision tower: the numbers of eager attention, from any implementation, and nothing else changes."""

import copy
import pickle
import sys
import threading
from dataclasses import dataclass

import pytest
import torch
from accelerate import cpu_offload
from torch.nn import functional as F
from transformers import AttentionInterface

import tokenprune
from tests import test_layouts
from tests.families import BY_NAME, FAMILIES, LLAVA, QWEN2_5_VL
from tests.probes import same, snapshot
from tests.test_layouts import MIXED, changed
from tokenprune.adapters import lookup
from tokenprune.errors import UnsupportedPolicyError
from tokenprune.stages import tower
from tokenprune.tokens import Tap

INSIDE = [one for one in FAMILIES if lookup(one.model_type).towers and one.name not in MIXED]
FIRST_KEYS = Tap("keys", layer=0)
EVERY = [
    Tap("attention"),
    Tap("attention", queries="all", layer=0),
    Tap("attention", queries="all", heads="joined", layer=-1),
    Tap("attention", heads="joined", layer=-1),
    Tap("keys"),
    Tap("keys", heads="joined", layer=0.5),
]


@dataclass(kw_only=True)
class Look(test_layouts.Look):
    """Notes more of what it is shown."""

    taps: tuple = (FIRST_KEYS,)

    @property
    def needs(self):
        return frozenset({"features", "encoder", *self.taps})


@dataclass(kw_only=True)
class Beside(Look):
    """The same, without what entered the projector."""

    @property
    def needs(self):
        return frozenset({"features", *self.taps})


def look(model, inputs, taps, per="prompt"):
    """What a policy is shown of one forward."""
    policy = Look(keep=1, taps=tuple(taps))
    with torch.no_grad(), tokenprune.wrap(model, policy, per=per):
        model(**inputs)
    return policy.seen[-1]


def by_name(family):
    return family.name


@pytest.mark.parametrize("family", INSIDE, ids=by_name)
def test_values_belong_to_their_token(family):
    """Keys of the first layer see their own patch alone: a changed pixel changes those of the token it shows in."""
    model, inputs = family.model(), family.inputs((1,))
    size = next(value for name, value in inputs.items() if name.startswith("pixel_values")).numel()
    before, compared = look(model, inputs, [FIRST_KEYS]), 0
    for place in torch.randint(size, (40,), generator=torch.Generator().manual_seed(0)).tolist():
        after = look(model, changed(inputs, [place]), [FIRST_KEYS])
        features = (after.features - before.features)[0].norm(dim=-1)
        keys = (after.tower[FIRST_KEYS] - before.tower[FIRST_KEYS])[0].flatten(1).norm(dim=-1)
        first, second = features.topk(2).values
        if first > 1.5 * second and keys.any():  # not in a patch cut off as padding, and not spread by attention
            compared += 1
            assert keys.argmax() == features.argmax()
    assert compared >= 5


@pytest.mark.parametrize("family", INSIDE, ids=by_name)
def test_nothing_else_changes(family):
    model, inputs = family.model(), family.inputs((2, 1))
    with torch.no_grad():
        dense = model(**inputs).logits
        before = snapshot(model)
        with tokenprune.wrap(model, Look(keep=1, taps=tuple(EVERY))):
            other = family.model()  # of the same class, and knows nothing of it
            assert torch.equal(other(**inputs).logits, dense)
            copied = copy.deepcopy(model)
        features = look(model, inputs, EVERY).features
        assert same(before, snapshot(model))
        assert torch.equal(look(model, inputs, []).features, features)
        assert torch.equal(model(**inputs).logits, dense)
        assert torch.equal(copied(**inputs).logits, dense)


def test_a_pickled_copy_is_a_plain_model():
    model = LLAVA.model()  # not yet run: transformers' own hooks cannot be pickled
    with tokenprune.wrap(model, Look(keep=1, taps=tuple(EVERY))):
        copied = pickle.loads(pickle.dumps(model))
    inputs = LLAVA.inputs()
    assert torch.equal(copied(**inputs).logits, model(**inputs).logits)
    vision = copied.model.vision_tower
    assert {type(module.config) for module in vision.modules() if hasattr(module, "config")} == {type(vision.config)}


@pytest.fixture
def maps(monkeypatch):
    """Attention maps of a tower run with eager attention: a function of (family, inputs) -> {layer: [calls]}."""

    def run(family, inputs):
        model, found = family.model(), {}
        names = {module: name for name, module in model.base_model.named_modules()}
        paths = lookup(family.model_type).towers
        module = next(m for m, name in names.items() if name.startswith(paths) and name.endswith(("attn", "attention")))
        source = sys.modules[type(module).__module__]
        eager = source.eager_attention_forward

        def noted(module, query, key, value, attention_mask, **kwargs):
            output, weights = eager(module, query, key, value, attention_mask, **kwargs)
            found.setdefault(names[module], []).append((query, key, attention_mask, weights))
            return output, weights

        monkeypatch.setattr(source, "eager_attention_forward", noted)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            model(**inputs)
        return [calls for name, calls in found.items() if name.startswith(paths)]

    return run


def received(calls):
    """[positions] mean over heads and over the queries that see a key."""
    parts = []
    for *_, mask, weights in calls:
        seen = torch.ones_like(weights[:, :1]) if mask is None else (mask == 0).expand_as(weights[:, :1]).float()
        parts.append((weights.mean(1).sum(1) / seen[:, 0].sum(1)).flatten(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["llava-pixtral", "qwen2_vl", "qwen2_vl-video", "exaone4_5", "paligemma"])
@pytest.mark.parametrize("layer", [0, -1])
def test_received_attention_is_the_mean_column_of_the_map(name, layer, maps):
    """Masked blocks, one call per image or frame, windows, fewer key heads; compared as sets where towers reorder."""
    family = BY_NAME[name]
    inputs = family.inputs((2,))
    tap = Tap("attention", queries="all", layer=layer)
    found = look(family.model(), inputs, [tap]).tower[tap].flatten()
    expected = received(maps(family, inputs)[layer])
    if lookup(family.model_type).model_type == "exaone4_5":
        found, expected = found.sort().values, expected.sort().values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("videos", [(1,), (2, 1)], ids=str)
def test_frames_that_are_interpolated_have_their_values_interpolated(videos, maps):
    """LLaVA-OneVision: 4 x 4 patches of a frame become 2 x 2 tokens, a newline row ends every video."""
    family = BY_NAME["llava_onevision-video"]
    inputs, tap = family.inputs(videos), Tap("attention", queries="all", layer=-1)
    policy, model = Beside(keep=1, taps=(tap,)), family.model()
    with torch.no_grad(), tokenprune.wrap(model, policy):
        model(**inputs)
    shown = torch.cat([tokens.tower[tap] for tokens in policy.seen])
    expected = received(maps(family, inputs)[-1]).view(-1, 1, 4, 4)
    expected = F.interpolate(expected, size=(2, 2), mode="bilinear").view(sum(videos), 6 * 4)
    torch.testing.assert_close(shown[..., 0, 0], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_of_the_class_token(attention, maps):
    """LLaVA reads the last layer but one; [images, heads, 37, 37] with the class token first."""
    model, inputs = LLAVA.model(attention=attention), LLAVA.inputs((2,))
    taps = [Tap("attention"), Tap("attention", queries="cls", heads="joined", layer=-1), Tap("class_token")]
    shown = look(model, inputs, taps, per="image")
    plain = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    layers = maps(LLAVA, inputs)
    (_, _, _, weights), (query, key, _, _) = layers[-2][0], layers[-1][0]
    torch.testing.assert_close(shown.tower[taps[0]][:, :, 0, 0], weights.mean(1)[:, 0, 1:], rtol=1e-4, atol=1e-7)
    wide = (query[:, :, 0].flatten(1)[:, None] @ key.transpose(1, 2).flatten(2).mT / 32**0.5).softmax(-1)
    torch.testing.assert_close(shown.tower[taps[1]][:, :, 0, 0], wide[:, 0, 1:], rtol=1e-4, atol=1e-7)
    first = plain.hidden_states[-2][:, :1].expand(-1, 36, -1)
    assert torch.equal(shown.tower[taps[2]][:, :, 0], first)


def test_keys(maps):
    inputs = LLAVA.inputs((2,))
    taps = [Tap("keys", layer=1), Tap("keys", heads="joined", layer=1)]
    shown = look(LLAVA.model(), inputs, taps, per="image")
    key = maps(LLAVA, inputs)[1][0][1]  # [2, 4, 37, 8]
    torch.testing.assert_close(shown.tower[taps[0]][:, :, 0], key.mean(1)[:, 1:])
    torch.testing.assert_close(shown.tower[taps[1]][:, :, 0], key.transpose(1, 2).flatten(2)[:, 1:])


def packed(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Flash attention over packed images, spelt out: [1, L, H, D]"""
    sizes = kwargs["cu_seq_lens_q"].diff().tolist()
    parts = [
        ((q @ k.mT) * scaling).softmax(-1) @ v
        for q, k, v in zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    ]
    assert module.config._attn_implementation == "flash_stand_in"
    return torch.cat(parts, 2).transpose(1, 2), None


def test_packed_images_of_flash_attention():
    AttentionInterface.register("flash_stand_in", packed)
    model, inputs = QWEN2_5_VL.model(), QWEN2_5_VL.inputs((2,))
    expected = look(model, inputs, EVERY)
    for module in model.model.visual.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = "flash_stand_in"
    found = look(model, inputs, EVERY)
    for tap in EVERY:
        torch.testing.assert_close(found.tower[tap], expected.tower[tap], rtol=1e-4, atol=1e-6)


def test_the_attention_implementation_may_change_while_wrapped():
    """What packs images for flash attention must not go on doing so for sdpa, which would mix them."""
    AttentionInterface.register("flash_stand_in", packed)
    inputs, policy = QWEN2_5_VL.inputs((2,)), Look(keep=1, taps=tuple(EVERY))
    expected, model = look(QWEN2_5_VL.model(), inputs, EVERY), QWEN2_5_VL.model()
    config = model.model.visual.blocks[0].attn.config
    with torch.no_grad(), tokenprune.wrap(model, policy, per="prompt"):
        for name in ("flash_stand_in", "sdpa", "eager"):
            config._attn_implementation_internal = name
            model(**inputs)
            shown = policy.seen[-1]
            torch.testing.assert_close(shown.features, expected.features)
            for tap in EVERY:
                torch.testing.assert_close(shown.tower[tap], expected.tower[tap], rtol=1e-4, atol=1e-6)


def test_taps_are_float32_under_autocast():
    inputs, taps = LLAVA.inputs(), [Tap("attention"), Tap("attention", queries="all"), Tap("keys")]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shown = look(LLAVA.model(), inputs, taps)
    for tap in taps:
        assert shown.tower[tap].dtype == torch.float32


@pytest.mark.parametrize("how", ["disabled", "keep-all"])
def test_nothing_is_computed_where_nothing_is_pruned(how, monkeypatch):
    calls = []
    monkeypatch.setattr(tower, "received_attention", lambda *args: calls.append(args))
    model, policy = LLAVA.model(), tokenprune.HiPrune(keep=1.0 if how == "keep-all" else 0.5)
    with torch.no_grad(), tokenprune.wrap(model, policy) as handle:
        handle.enabled = how != "disabled"
        model(**LLAVA.inputs())
    assert not calls


def test_pre_encoded_images_bring_their_values():
    """`generate` encodes before the forward, and repeats samples for beams."""
    model, inputs, policy = LLAVA.model(), LLAVA.inputs((2, 1)), Look(keep=1, taps=tuple(EVERY))
    expected = look(model, inputs, EVERY, per="image")
    with tokenprune.wrap(model, policy):
        model.generate(**inputs, max_new_tokens=1, num_beams=1)
    for tap in EVERY:
        assert torch.equal(policy.seen[0].tower[tap], expected.tower[tap])


def test_threads_do_not_meet():
    model, results = LLAVA.model(), {}
    batches = [LLAVA.inputs((count,), seed=count) for count in (1, 2, 3)] * 3
    policy = tokenprune.FasterVLM(keep=5)
    expected = []
    for inputs in batches:
        with torch.no_grad(), tokenprune.wrap(model, policy):
            expected.append(model(**inputs).logits)

    def work(i):
        with torch.no_grad():
            results[i] = model(**batches[i]).logits

    with tokenprune.wrap(model, policy):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, logits in enumerate(expected):
        torch.testing.assert_close(results[i], logits)


def test_an_offloaded_tower():
    inputs = LLAVA.inputs()
    expected, model = look(LLAVA.model(), inputs, EVERY), LLAVA.model()
    cpu_offload(model, torch.device("cpu"))
    found = look(model, inputs, EVERY)
    for tap in EVERY:
        assert torch.equal(found.tower[tap], expected.tower[tap])


@pytest.mark.parametrize(
    ("name", "tap", "message"),
    [
        ("paligemma", Tap("attention", queries="cls"), "has none: use VisionAttention\\(queries='all' or 'auto'\\)"),
        ("qwen2_5_vl", Tap("class_token"), "needs the class token"),
        ("llava", Tap("attention", layer=3), "layer=3 is not in the vision tower of 'llava', which has 3 attention"),
        ("llava", Tap("attention", layer=-4), "index from -3 to 2"),
        ("gemma3n", Tap("keys"), "none whose attention can be told apart"),
        ("got_ocr2", Tap("keys"), "needs the tower features"),
    ],
)
def test_what_a_tower_lacks_is_said_at_wrap(name, tap, message):
    model = BY_NAME[name].model()
    before = snapshot(model)
    with pytest.raises(UnsupportedPolicyError, match=message):
        tokenprune.wrap(model, Look(keep=1, taps=(tap,)))
    assert same(before, snapshot(model))

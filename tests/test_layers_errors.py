"""Every sentence a user can meet about pruning inside the language model, and that nothing is half-wrapped then."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import StaticCache

import tokenprune
from tests.conftest import EveryThirdInside
from tests.families import ALL, BUILT, BY_NAME, LLAVA, QWEN2_5_VL
from tests.probes import NO_SELECTIONS, NothingHalfWrapped, generate, same, snapshot
from tokenprune import FastV, PyramidDrop, Selection, SparseVLM, errors
from tokenprune.adapters import lookup
from tokenprune.stages import decoder
from tokenprune.stages.parts import Parts

INSIDE = [name for name in BY_NAME if (adapter := lookup(BY_NAME[name].model_type)) and adapter.between_layers]


class TestBadArguments(NothingHalfWrapped):
    @pytest.mark.parametrize(
        ("policy", "words"),
        [
            (lambda: FastV(layer=4, keep=4), r"layer=4 .*4 layers: give an int from 1 to 3, or a share\.$"),
            (lambda: FastV(layer=0.1, keep=4), r"layer=0\.1 is layer 0 .*from 1 to 3, or a share\.$"),
            (lambda: FastV(layer=0, keep=4), "layer=0 is neither"),
            (lambda: FastV(layer=True, keep=4), "layer=True is neither"),
            (lambda: FastV(layer=1.0, keep=4), r"layer=1\.0 is neither"),
            (lambda: PyramidDrop(layers=(1, 2, 9)), r"layers=\(1, 2, 9\) has 9, .*ints from 1 to 3, or shares"),
            (lambda: PyramidDrop(layers=(2, 1, 3)), r"layers=\(2, 1, 3\) do not rise"),
            (lambda: PyramidDrop(layers=(1, 1, 3)), "do not rise"),
            (lambda: PyramidDrop(layers=(1, 2, -1)), "has -1: give ints from 0"),
            (lambda: PyramidDrop(layers=()), r"layers=\(\) prunes nowhere"),
            (lambda: SparseVLM(layers=(1,)), r"layers=\(1,\) are 1, .* has 3: give keeps="),
            (lambda: PyramidDrop(keeps=(0.5, 0.5)), r"keeps=\(0\.5, 0\.5\) has 2 entries"),
            (lambda: PyramidDrop(layers=(1,), keeps=(1.5,)), r"keep=1\.5 is not in \(0, 1\]"),
            (lambda: PyramidDrop(layers=(1,), keeps=(0.0,)), r"keep=0\.0"),
            (lambda: PyramidDrop(layers=(1,), keeps=(0.5,), keep=4), r"keep=4 and keeps=\(0\.5,\) are both given"),
            (lambda: SparseVLM(layers=(0, 1, 3)), "ints from 0 to 2, or shares"),
            (lambda: SparseVLM(version="2"), "version='2' is not one of 1.5, plus"),
            (lambda: SparseVLM(counts="ranks"), "counts='ranks' is not one of schedule, rank"),
            (lambda: SparseVLM(heads=0), "heads=0 is neither"),
        ],
    )
    def test_values(self, model, policy, words):
        with pytest.raises(errors.InvalidArgumentError, match=words):
            tokenprune.wrap(model, policy())

    def test_no_budget(self, model):
        with pytest.raises(errors.InvalidArgumentError, match=r"keep=None leaves 'fastv' without a budget"):
            tokenprune.wrap(model, "fastv")

    def test_keep_twice(self, model):
        with pytest.raises(errors.InvalidArgumentError, match="given twice"):
            tokenprune.wrap(model, FastV(keep=3), keep=4)
        with pytest.raises(errors.InvalidArgumentError, match="both given"):
            tokenprune.wrap(model, PyramidDrop(layers=(1,), keeps=(0.5,)), keep=4)

    def test_per_differs(self, model):
        policies = [tokenprune.DivPrune(keep=9), FastV(keep=4, per="prompt")]
        with pytest.raises(errors.InvalidArgumentError, match="per='image' and 'prompt' differ"):
            tokenprune.wrap(model, policies)

    def test_wrapped_twice(self, model):
        with tokenprune.wrap(model, "fastv", keep=4):
            for policy in ("fastv", "divprune"):
                with pytest.raises(errors.AlreadyWrappedError, match="wrapped already"):
                    tokenprune.wrap(model, policy, keep=4)

    @pytest.mark.parametrize("name", ["listen", "LayerDeepStack"])
    def test_installing_fails_half_way(self, model, monkeypatch, name):
        """PyramidDrop listens to three layers, and the hooks of all layers are there before the first of them."""
        done = []

        def fail(*given):
            done.append(given)
            if len(done) > 1 or name != "listen":
                raise RuntimeError("no such thing")
            return original(*given)

        original = decoder.listen
        monkeypatch.setattr(*((decoder, name, fail) if name == "listen" else (decoder.LayerDeepStack, "install", fail)))
        with pytest.raises(RuntimeError, match="no such thing"):
            tokenprune.wrap(model, "pyramiddrop")


def refused(name, policy, words, error=errors.UnsupportedModelError):
    """Wrapping fails, in one sentence, and leaves the model as it was."""
    model = BY_NAME[name].model()
    before = snapshot(model)
    with pytest.raises(error, match=words) as caught:
        tokenprune.wrap(model, policy)
    assert str(caught.value).count("\n") == 0
    assert same(before, snapshot(model))


class TestBadModels:
    @pytest.mark.parametrize("name", INSIDE)
    def test_families_whose_layers_need_all_tokens(self, name):
        refused(name, FastV(keep=4), "cannot lose tokens inside the language model: .* use policies in front of it")

    @pytest.mark.skipif(len(BUILT) < len(ALL), reason="this transformers does not have them all")
    def test_some_are_refused(self):
        assert {"qwen4_exp", "glm5_next", "inkling2"} <= set(INSIDE)

    @pytest.mark.parametrize("name", ["gemma4-shared", "gemma3n"])
    def test_layers_that_read_the_keys_of_others(self, name):
        refused(
            name,
            FastV(layer=5, keep=4),
            r"leave layer 5, and from layer 5 on .* keys of layer 4, .*layer 4 at the latest",
        )
        with tokenprune.wrap(BY_NAME[name].model(), FastV(layer=4, keep=4)) as handle:
            handle._stage.parts.model(**BY_NAME[name].inputs())
        assert handle.report().kept == 4

    def test_layers_without_softmax_attention(self):
        words = "reads the attention of layer 2, and that layer of 'qwen3_5' computes none that can be read; .*: 1, 3"
        refused("qwen3_5", PyramidDrop(layers=(2,), keeps=(0.5,)), words, errors.UnsupportedPolicyError)
        refused("qwen3_5", FastV(layer=1, keep=4), "layer 0, .*: 1, 3", errors.UnsupportedPolicyError)

    def test_the_nearest_layer_before_is_read_instead(self):
        family = BY_NAME["qwen3_5"]
        model = family.model()
        with tokenprune.wrap(model, FastV(layer=3, keep=4)) as handle:
            model(**family.inputs())
        assert [(one.layer, one.scored) for one in handle.report().events] == [(3, 1)]

    def test_compact_positions_with_several_axes(self):
        for name in ("qwen2_5_vl", "cohere_compass"):  # the latter's config names sections by layer type
            if name in BY_NAME:
                model = BY_NAME[name].model()
                with pytest.raises(errors.InvalidArgumentError, match="positions='compact' has no meaning"):
                    tokenprune.wrap(model, FastV(keep=4), positions="compact")
                with tokenprune.wrap(model, "pyramiddrop") as handle:  # by itself it would renumber
                    assert handle.report().positions == "original"

    @pytest.mark.parametrize("policy", ["uniform", "fastv"])
    def test_compact_positions_where_only_the_forward_tells(self, monkeypatch, policy):
        monkeypatch.setattr(Parts, "several_axes", False)
        model = QWEN2_5_VL.model()
        with tokenprune.wrap(model, policy, keep=4, positions="compact"):
            with pytest.raises(errors.InvalidArgumentError, match="positions='compact' has no meaning"):
                model(**QWEN2_5_VL.inputs())


class TestBadForwards:
    """Errors in the middle of a forward leave the model and the hooks usable."""

    @pytest.fixture(params=[LLAVA, QWEN2_5_VL], ids=lambda family: family.name)
    def family(self, request):
        return request.param

    @pytest.mark.skipif("granite4_vision" not in BY_NAME, reason="this transformers does not have it")
    def test_visual_features_added_by_later_layers(self):
        family = BY_NAME["granite4_vision"]
        model, inputs = family.model(), family.inputs()
        dense = model(**inputs).logits
        with tokenprune.wrap(model, FastV(keep=4)) as handle:
            with pytest.raises(
                errors.UnsupportedModelError, match=r"leave layer 2, .*up to layer 3: drop from layer 4"
            ):
                model(**inputs)
            handle.enabled = False
            assert torch.equal(model(**inputs).logits, dense)

    @pytest.mark.parametrize("images", [(1, 1), (2, 1)], ids=str)
    def test_a_static_cache_of_several_prompts(self, family, images):
        model = family.model()
        with tokenprune.wrap(model, "fastv", keep=4), pytest.raises(errors.UnsupportedModelError, match="static cache"):
            generate(model, family.inputs(images), cache_implementation="static")

    def test_a_static_cache_in_its_second_turn(self, family):
        model, inputs = family.model(), family.inputs()
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=200)
        del inputs["attention_mask"]
        with tokenprune.wrap(model, "fastv", keep=4):
            model(**inputs, past_key_values=cache)
            with pytest.raises(errors.UnsupportedModelError, match="static cache.*new images in a later turn"):
                model(**inputs, past_key_values=cache)

    @pytest.mark.parametrize("policy", ["fastv", "pyramiddrop", "sparsevlm", "himap", "random-layers"])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_nan_and_inf(self, family, policy, value):
        """Attention over NaN would read as zeros, and keep the first tokens without a word."""
        model, inputs = family.model(), family.inputs()
        broken = {**inputs, "pixel_values": torch.full_like(inputs["pixel_values"], value)}
        with tokenprune.wrap(model, policy, keep=4) as handle:
            with pytest.raises(errors.InvalidFeaturesError, match="in front of layer .* NaN or Inf"):
                model(**broken)
            assert not handle.report().units
            model(**inputs)
            assert handle.report().kept == 4

    def test_scores_that_are_no_numbers(self, family):
        @dataclass(kw_only=True)
        class Wrong(FastV):
            def score(self, attention, event):
                return super().score(attention, event) / 0

        model = family.model()
        with tokenprune.wrap(model, Wrong(keep=4)), pytest.raises(errors.InvalidFeaturesError, match="scores in front"):
            model(**family.inputs())

    @pytest.mark.parametrize(("answer", "words"), NO_SELECTIONS)
    def test_answers_that_are_no_selection(self, family, answer, words):
        @dataclass(kw_only=True)
        class Wrong(EveryThirdInside):
            def select(self, tokens, k):
                return Selection(indices=answer(k, tokens.shape[1]).expand(tokens.shape[0], -1))

        model, inputs = family.model(), family.inputs()
        with tokenprune.wrap(model, Wrong(keep=5)) as handle:
            with pytest.raises(errors.PolicyError, match=words):
                model(**inputs)
            handle.policies[0].select = EveryThirdInside(keep=5).select
            model(**inputs)
            assert handle.report().kept == 5

    @pytest.mark.parametrize(
        ("part", "shape"), [("features", (1, 64)), ("features", (5, 63)), ("source", (5,)), ("weights", (1,))]
    )
    def test_answers_whose_parts_do_not_fit(self, family, part, shape):
        @dataclass(kw_only=True)
        class Wrong(EveryThirdInside):
            def select(self, tokens, k):
                own = Selection.subset(torch.arange(k).expand(tokens.shape[0], k))
                return replace(own, **{part: torch.zeros(tokens.shape[0], *shape)})

        model, words = family.model(), rf"answered {part} of shape .* for k=5 of N=\d+ tokens"
        with tokenprune.wrap(model, Wrong(keep=5)), pytest.raises(errors.PolicyError, match=words):
            model(**family.inputs())

    def test_a_layer_that_is_not_called(self, family):
        model, inputs = family.model(), family.inputs()
        module = model.get_decoder()
        layers = module.layers
        with tokenprune.wrap(model, FastV(layer=3, keep=4)) as handle:
            module.layers = layers[:2]
            with pytest.raises(errors.NotEngagedError, match="'fastv' .*at layer 3 .*not called"):
                model(**inputs)
            assert not handle.report().units
            module.layers = layers
            model(**inputs)
            assert handle.report().kept == 4

    def test_attention_of_its_own(self, family):
        """A module that computes attention by itself shows nobody its queries."""
        model, inputs = family.model(), family.inputs()
        attention = model.get_decoder().layers[1].self_attn
        attention.forward = lambda hidden_states, **kwargs: (hidden_states, None)
        with tokenprune.wrap(model, FastV(keep=4)), pytest.raises(errors.NotEngagedError, match="layer 1 .*interface"):
            model(**inputs)

    def test_merging_where_a_decoder_keeps_several_streams(self):
        family = BY_NAME["gemma3n"]
        model, policy = family.model(), SparseVLM(layers=(0, 1, 2), keeps=(0.5, 0.4, 0.3))
        with tokenprune.wrap(model, policy), pytest.raises(errors.UnsupportedPolicyError, match="only drops"):
            model(**family.inputs())
        with tokenprune.wrap(model, replace(policy, tau=0)) as handle:
            model(**family.inputs())
        assert 0 < handle.report().kept < handle.report().total

"""Every sentence a user can meet, and that nothing is half-wrapped or corrupted when it is raised."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import transformers

import tokenprune
from tests import reference
from tests.families import BY_NAME, LLAVA, PRE_ENCODES, QWEN2_5_VL, REFUSED, TEXT
from tests.probes import NO_SELECTIONS, NothingHalfWrapped, spy
from tokenprune import errors


class TestBadArguments(NothingHalfWrapped):
    @pytest.mark.parametrize(
        ("keep", "words"),
        [
            (0, "keep=0"),
            (-3, "keep=-3"),
            (1.5, "keep=1.5"),
            (0.0, "keep=0.0"),
            (True, "bool"),
            (math.nan, "nan"),
            ("8", "str"),
        ],
    )
    def test_keep(self, model, keep, words):
        with pytest.raises(errors.InvalidArgumentError, match=words):
            tokenprune.wrap(model, "divprune", keep=keep)

    def test_keep_missing(self, model):
        with pytest.raises(errors.InvalidArgumentError, match=r"keep=None.*'divprune'"):
            tokenprune.wrap(model, "divprune")

    def test_keep_twice(self, model):
        with pytest.raises(errors.InvalidArgumentError, match="given twice"):
            tokenprune.wrap(model, tokenprune.DivPrune(keep=3), keep=4)

    def test_per(self, model):
        with pytest.raises(errors.InvalidArgumentError, match="per='imgae'.*did you mean 'image'"):
            tokenprune.wrap(model, "divprune", keep=4, per="imgae")

    def test_per_differs_in_one_stage(self, model):
        policies = [tokenprune.DivPrune(keep=9, per="image"), tokenprune.DivPrune(keep=4, per="prompt")]
        with pytest.raises(errors.InvalidArgumentError, match="differ"):
            tokenprune.wrap(model, policies)

    def test_positions(self, model):
        with pytest.raises(errors.InvalidArgumentError, match="positions='compct'.*did you mean 'compact'"):
            tokenprune.wrap(model, "divprune", keep=4, positions="compct")

    def test_policy_name(self, model):
        with pytest.raises(errors.UnknownPolicyError, match="policy='divprun'.*did you mean 'divprune'"):
            tokenprune.wrap(model, "divprun", keep=4)

    @pytest.mark.parametrize("policy", [None, [], tokenprune.DivPrune, 3, [3]], ids=repr)
    def test_no_policy(self, model, policy):
        with pytest.raises(errors.InvalidArgumentError, match="is no policy"):
            tokenprune.wrap(model, policy, keep=4)

    def test_wrapped_twice(self, model):
        handle = tokenprune.wrap(model, "divprune", keep=4)
        with pytest.raises(errors.AlreadyWrappedError, match=r"compose policies.*remove"):
            tokenprune.wrap(model, "uniform", keep=4)
        with pytest.raises(errors.AlreadyWrappedError):
            tokenprune.wrap(model.model, "uniform", keep=4)
        handle.remove()

    def test_wrap_inside_a_forward(self, model):
        hook = model.model.vision_tower.register_forward_hook(lambda *_: tokenprune.wrap(model, "uniform", keep=4))
        with pytest.raises(errors.AlreadyWrappedError, match="inside a forward"):
            model(**LLAVA.inputs())
        hook.remove()


class TestBadModels:
    def test_text_only(self):
        config = transformers.LlamaConfig(**TEXT)
        with pytest.raises(errors.UnsupportedModelError, match=r"no vision tower.*llava.*qwen2_5_vl"):
            tokenprune.wrap(transformers.LlamaForCausalLM(config), "uniform", keep=4)

    def test_family(self):
        model = LLAVA.model()
        model.config.model_type = "newllava"
        with pytest.raises(errors.UnsupportedModelError, match=r"'newllava'.*supported are.* llava,.* qwen2_5_vl"):
            tokenprune.wrap(model, "uniform", keep=4)

    @pytest.mark.parametrize("name", [name for name in REFUSED if name in BY_NAME])
    def test_variant(self, name):
        with pytest.raises(errors.UnsupportedModelError, match=REFUSED[name]):
            tokenprune.wrap(BY_NAME[name].model(), "uniform", keep=4)

    def test_no_transformers_model(self):
        with pytest.raises(errors.UnsupportedModelError, match="model=Linear is not a transformers model"):
            tokenprune.wrap(torch.nn.Linear(2, 2), "uniform", keep=4)

    def test_meta_device(self):
        with torch.device("meta"):
            model = transformers.LlavaForConditionalGeneration(LLAVA.model().config)
        with pytest.raises(errors.UnsupportedModelError, match="meta device"):
            tokenprune.wrap(model, "uniform", keep=4)

    def test_compiled_module(self):
        with pytest.raises(errors.UnsupportedModelError, match="wrap the model first"):
            tokenprune.wrap(torch.compile(LLAVA.model(), backend="eager"), "uniform", keep=4)

    def test_compact_positions_with_m_rope(self):
        with pytest.raises(errors.InvalidArgumentError, match="positions='compact'"):
            tokenprune.wrap(QWEN2_5_VL.model(), "uniform", keep=4, positions="compact")

    def test_policy_that_needs_what_the_model_lacks(self):
        policy = tokenprune.CDPruner(keep=4, relevance=spy([], {"encoder"}))
        with pytest.raises(errors.UnsupportedPolicyError, match="got_ocr2' mixes them"):
            tokenprune.wrap(BY_NAME["got_ocr2"].model(), policy)
        with pytest.raises(errors.UnsupportedPolicyError, match="got_ocr2' mixes them"):
            tokenprune.wrap(BY_NAME["got_ocr2"].model(), tokenprune.DivPrune(keep=4, features="pre_merger"))


class TestBadForwards:
    """Errors in the middle of a forward leave the model and the hooks usable."""

    @pytest.fixture(params=[LLAVA, QWEN2_5_VL], ids=lambda family: family.name)
    def family(self, request):
        return request.param

    def test_exception_in_a_policy(self, family):
        @dataclass(kw_only=True)
        class Fails(tokenprune.ProjectorPolicy):
            on: bool = True

            def select(self, tokens, k):
                if self.on:
                    raise ZeroDivisionError("in the policy")
                return tokenprune.Selection.subset(torch.arange(k).expand(len(tokens.features), k))

        model, inputs = family.model(), family.inputs((1, 2))
        dense = model(**inputs).logits
        policy = Fails(keep=5)
        handle = tokenprune.wrap(model, policy)
        with pytest.raises(ZeroDivisionError, match="in the policy"):
            model.generate(**inputs, max_new_tokens=2)
        handle.policies[0].on = False
        model(**inputs)
        assert handle.report().kept == 15
        handle.remove()
        assert torch.equal(model(**inputs).logits, dense)

    @pytest.mark.parametrize(("answer", "words"), NO_SELECTIONS)
    def test_answers_that_are_no_selection(self, family, answer, words):
        @dataclass(kw_only=True)
        class Wrong(tokenprune.ProjectorPolicy):
            def select(self, tokens, k):
                return tokenprune.Selection(indices=answer(k, tokens.shape[1]).expand(len(tokens.features), -1))

        model = family.model()
        with tokenprune.wrap(model, Wrong(keep=5)), pytest.raises(errors.PolicyError, match=words):
            model(**family.inputs())

    @pytest.mark.parametrize(
        ("part", "shape"), [("features", (1, 64)), ("features", (5, 63)), ("source", (5,)), ("weights", (1,))]
    )
    def test_answers_whose_parts_do_not_fit(self, family, part, shape):
        @dataclass(kw_only=True)
        class Wrong(tokenprune.ProjectorPolicy):
            def select(self, tokens, k):
                own = tokenprune.Selection.subset(torch.arange(k).expand(len(tokens.features), k))
                return replace(own, **{part: torch.zeros(len(tokens.features), *shape)})

        model, words = family.model(), rf"answered {part} of shape .* for k=5 of N=\d+ tokens"
        with tokenprune.wrap(model, Wrong(keep=5)), pytest.raises(errors.PolicyError, match=words):
            model(**family.inputs())

    def test_patches_of_merged_tokens(self, family):
        """A merged token is no longer made of the patches of its place."""
        model, first, second = family.model(), tokenprune.Pool(keep=12), tokenprune.VisPruner(keep=6)
        words = "merged tokens.*put it first"
        with tokenprune.wrap(model, [first, second]), pytest.raises(errors.UnsupportedPolicyError, match=words):
            model(**family.inputs())
        with tokenprune.wrap(model, [second, tokenprune.Pool(keep=3)]) as handle:
            model(**family.inputs())
        assert {unit.kept for unit in handle.report().units} == {3}

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_nan_and_inf_features(self, family, value):
        model, inputs = family.model(), family.inputs()
        broken = {**inputs, "pixel_values": torch.full_like(inputs["pixel_values"], value)}
        with tokenprune.wrap(model, "divprune", keep=5) as handle:
            with pytest.raises(errors.InvalidFeaturesError, match="NaN or Inf"):
                model(**broken)
            model(**inputs)
            assert handle.report().kept == 5

    def test_prompt_without_placeholder(self, family):
        model, inputs = family.model(), family.inputs()
        inputs["input_ids"] = inputs["input_ids"].clamp_max(140)
        with tokenprune.wrap(model, "divprune", keep=5), pytest.raises(errors.InputError, match="no placeholder"):
            model(**inputs)

    def test_not_engaged(self, family):
        """A decoder that is not called with this forward's embeddings must not pass for a pruned one."""
        model, inputs = family.model(), family.inputs()
        with tokenprune.wrap(model, "divprune", keep=5):
            forward = model.model.language_model.forward
            twice = model.model.language_model.register_forward_pre_hook(  # runs first, hides the visual tokens
                lambda module, args, kwargs: (args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"][:, 1:]}),
                with_kwargs=True,
                prepend=True,
            )
            with pytest.raises(errors.NotEngagedError, match=r"visual tokens.*none was removed at stage 'projector'"):
                model(input_ids=inputs["input_ids"], **{k: v for k, v in inputs.items() if "pixel" in k or "grid" in k})
            twice.remove()
            assert model.model.language_model.forward == forward
            assert model(**inputs).logits.isfinite().all()

    @pytest.mark.skipif(not PRE_ENCODES, reason="this transformers loses the images in chunked prefill, wrapped or not")
    def test_chunked_prefill(self):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        with tokenprune.wrap(model, "divprune", keep=5), pytest.raises(errors.UnsupportedModelError, match="chunk"):
            model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=16)

    def test_merged_embeddings_are_not_passed_over_silently(self):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        x = reference.decoder_inputs(model, inputs)["inputs_embeds"]
        with tokenprune.wrap(model, "divprune", keep=5), pytest.warns(UserWarning, match="nothing is pruned"):
            model(inputs_embeds=x)

"""What is silently wrong when pruning is done naively: one test for each, that fails without its remedy."""

from dataclasses import dataclass

import pytest
import torch

import tokenprune
from tests import probes, reference
from tests.conftest import INSIDE, EveryThird
from tests.families import BY_NAME, FAMILIES, IMAGE, LLAVA, PRE_ENCODES
from tests.probes import STEPS, generate, logits, new_tokens
from tokenprune import ProjectorPolicy, Selection, errors
from tokenprune.adapters import lookup


@pytest.fixture
def every_third(every_third_somewhere):
    return every_third_somewhere


def families(*names):
    return pytest.mark.parametrize(
        "family", [BY_NAME[name] for name in names if name in BY_NAME], ids=lambda family: family.name
    )


def compare(answers, family, model, inputs, keep, tokens, **kwargs):
    """The logits of an answer are those of the reference."""
    expected = reference.logits(model, inputs, keep, tokens, **kwargs)
    assert (answers - expected).abs().max() < family.tolerance


def loop(model, inputs, **more):
    """An answer token by token, by a loop that passes no positions. `more` are argument functions of the mask."""
    mask, cache, steps, given = inputs.get("attention_mask"), None, [], dict(inputs)
    for _ in range(STEPS):
        given |= {name: function(mask)[:, -given["input_ids"].shape[1] :] for name, function in more.items()}
        out = model(**given, past_key_values=cache, use_cache=True)
        steps.append(out.logits[:, -1])
        given, cache = {"input_ids": 5 + steps[-1][:, 5:140].argmax(-1, keepdim=True)}, out.past_key_values
        if mask is not None:
            mask = given["attention_mask"] = torch.nn.functional.pad(mask, (0, 1), value=1)
    return torch.stack(steps, 1), 5 + torch.stack(steps, 1)[..., 5:140].argmax(-1)


def unmasked(inputs):
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


def forced(token, *, steps=range(STEPS)):
    """Logits processor that makes a token the likeliest at some steps of the answer."""
    calls = []

    def processor(ids, scores):
        calls.append(1)
        return scores.index_fill(-1, torch.tensor([token]), 1e4) if len(calls) - 1 in steps else scores

    return [processor]


class TestPositionsAndMasks:
    @families("llava", "qwen2_5_vl")
    def test_gaps_in_positions_are_no_packed_sequences(self, family, every_third):
        """Without a mask and a cache transformers takes a gap for the start of another sequence."""
        model, inputs, keep = family.model(), family.inputs((1,)), probes.every_third(family, family.model(), (1,))
        with tokenprune.wrap(model, every_third):
            last = model(**unmasked(inputs), use_cache=False).logits[:, -1:]
        compare(last, family, model, inputs, keep, torch.zeros(1, 1).long())

    @families("llava", "gemma3", "qwen3_5")
    def test_positions_count_the_tokens_that_left(self, family, every_third):
        """A loop without positions gets those of the prompt's length, from a cache that holds less."""
        model, inputs, keep = family.model(), family.inputs((2,)), probes.every_third(family, family.model(), (2,))
        with tokenprune.wrap(model, every_third):
            steps, tokens = loop(model, unmasked(inputs))
        compare(steps, family, model, inputs, keep, tokens)

    @families("llava", "gemma3", "qwen3_5")
    def test_masks_of_later_calls_are_about_the_prompt(self, family, every_third):
        """The 2-D mask of a step has a column per token of the prompt, the cache a slot per token that is left."""
        model, inputs = family.model(), family.inputs((2, 1))
        keep = probes.every_third(family, model, (2, 1))
        positions = {"position_ids": lambda mask: (mask.cumsum(1) - 1).clamp_min(0)}
        with tokenprune.wrap(model, every_third):
            steps, tokens = loop(model, inputs, **({} if family.name == "qwen3_5" else positions))
        compare(steps, family, model, inputs, keep, tokens)

    # HunYuan numbers a step by the cache alone, whatever the mask: its left-padded batches need position_ids.
    @pytest.mark.parametrize(
        "family",
        [one for one in FAMILIES if hasattr(one.build().base_model, "rope_deltas") and one.name != "hunyuan_vl"],
        ids=lambda family: family.name,
    )
    def test_rope_deltas_go_with_the_mask_of_the_prompt(self, family, every_third):
        model, inputs = family.model(), family.inputs((2, 1))
        if every_third.stage == "layer" and lookup(family.model_type).between_layers is not None:
            with pytest.raises(errors.UnsupportedModelError, match="in front of it"):
                tokenprune.wrap(model, every_third)
            return
        with tokenprune.wrap(model, every_third):
            steps, tokens = loop(model, inputs)
        compare(steps, family, model, inputs, probes.every_third(family, model, (2, 1)), tokens)

    @families("llava", "internvl", "gemma3", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
    def test_a_batch_that_is_as_long_as_before(self, family, every_third):
        """A second row of text alone keeps its length, so nothing but the first row tells that it was cut, and
        padding appears where no mask was given."""
        model, inputs = family.model(), family.inputs((1,))
        ids = inputs["input_ids"]
        text = torch.randint(5, 140, ids.shape, generator=torch.Generator().manual_seed(1))
        ids = torch.cat([ids, text])
        inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), **family.extra(ids)}
        keep = torch.cat([probes.every_third(family, model, (1,)), torch.ones_like(text).bool()])
        without_types = {name: value for name, value in inputs.items() if name != "token_type_ids"}  # causal Gemma
        for given in (inputs, without_types):
            with tokenprune.wrap(model, every_third):
                out = generate(model, given)
            assert torch.equal(out.sequences[:, : ids.shape[1]], ids)  # what was removed is still in the answer
            compare(logits(out), family, model, given, keep, new_tokens(out, inputs))

    @pytest.mark.skipif(not PRE_ENCODES, reason="this transformers misreads images of a later turn itself")
    @families("gemma3", "gemma4")
    def test_images_of_a_later_turn_see_themselves(self, family, every_third):
        """Masks are made from token types by cache slot, which are given by token of the prompt."""
        model, first, second = family.model(), family.inputs((1,)), family.inputs((1,), seed=4)
        for part in (model.config.get_text_config(), *model.modules()):  # a window counts what is left of earlier turns
            if getattr(part, "sliding_window", None):
                part.sliding_window = 4096
        second = {**second, "pixel_values": -second["pixel_values"]}
        both = {
            name: torch.cat([first[name], second[name]], int(first[name].shape == first["input_ids"].shape))
            for name in first
        }
        rows = {name: value for name, value in both.items() if value.shape == both["input_ids"].shape}
        with tokenprune.wrap(model, every_third):
            cache = model(**first, use_cache=True).past_key_values
            out = generate(model, {**second, **rows}, past_key_values=cache)
        keep = torch.cat([probes.every_third(family, model, (1,))] * 2, 1)
        compare(logits(out), family, model, both, keep, new_tokens(out, both))


class TestPlaceholders:
    """Ids of placeholders in an answer are words: only a call that brings images has visual tokens."""

    @pytest.fixture
    def image_is_a_word(self):
        """A model for which the placeholder's id reads like word 7."""

        def make(family):
            model = family.model()
            with torch.no_grad():
                model.get_input_embeddings().weight[IMAGE] = model.get_input_embeddings().weight[7]
            return model

        return make

    @families("llava", "qwen2_5_vl", "smolvlm")
    def test_generated(self, family, image_is_a_word, every_third):
        model, inputs = image_is_a_word(family), family.inputs((1,))
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, suppress_tokens=None, logits_processor=forced(IMAGE, steps=(1, 2, 4)))
        tokens = new_tokens(out, inputs)
        assert int((tokens == IMAGE).sum()) == 3
        keep = probes.every_third(family, model, (1,))
        compare(logits(out), family, model, inputs, keep, tokens.where(tokens != IMAGE, 7))

    @families("llava", "smolvlm")
    def test_proposed(self, family, every_third):
        """Prompt lookup proposes what follows the answer's last word in the prompt: placeholders."""
        model, inputs = family.model(), family.inputs((1,))
        before = int(inputs["input_ids"][0, reference.visual(inputs)[0].nonzero()[0, 0] - 1])
        seen = []
        hook = model.register_forward_pre_hook(lambda m, args, given: seen.append(given["input_ids"]), with_kwargs=True)
        given = {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1, "suppress_tokens": None}
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, logits_processor=forced(before, steps=range(99)), **given)
        hook.remove()
        assert sum(bool((ids == IMAGE).any()) for ids in seen) > 2
        keep = probes.every_third(family, model, (1,))
        compare(logits(out), family, model, inputs, keep, new_tokens(out, inputs))

    @families("llava", "qwen2_5_vl")
    def test_generated_without_cache(self, family, every_third):
        """Images come again with every step, so transformers itself refuses a placeholder too many; so it stays."""
        model, inputs = family.model(), family.inputs((1,))
        said = []
        for policy in (tokenprune.NoPruning(), every_third):
            processor = forced(IMAGE, steps=(1,))
            with tokenprune.wrap(model, policy), pytest.raises(ValueError, match="do not match") as error:
                generate(model, inputs, use_cache=False, suppress_tokens=None, logits_processor=processor)
            said.append(str(error.value))
        assert said[0] == said[1]

    @families("smolvlm", "idefics3", "granite_docling")
    def test_tiles_are_one_image_also_without_ids(self, family):
        """What stands before a tile tells of which image it is, as an embedding if there are no ids."""
        model, inputs = family.model(), family.inputs((2, 1))
        embeds = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
        del embeds["input_ids"]
        with tokenprune.wrap(model, "uniform", keep=5) as handle:
            expected = model(**inputs).logits
            assert [unit.kept for unit in handle.report().units] == [5, 5, 5]
            assert torch.equal(model(**embeds).logits, expected)


class TestFeatures:
    @pytest.mark.skipif(not PRE_ENCODES, reason="which family answers what changed since this transformers")
    @pytest.mark.parametrize(
        ("name", "container"),
        [
            ("llava", list),
            ("smolvlm", list),
            ("qwen2_5_vl", tuple),
            ("mistral3", tuple),
            ("internvl", torch.Tensor),
            ("llama4", type(None)),
            ("granite4_vision", type(None)),
        ],
    )
    def test_containers(self, name, container):
        """Encoders answer features in any of these."""
        family = BY_NAME[name]
        model, inputs = family.model(), family.inputs((2, 1))
        seen, encode = [], type(model.base_model).get_image_features
        model.base_model.get_image_features = lambda *args, **kwargs: (
            seen.append(encode(model.base_model, *args, **kwargs)) or seen[-1]
        )
        model(**inputs)
        del model.base_model.get_image_features
        found = seen[0] if type(seen[0]) in (list, tuple) else seen[0].pooler_output
        assert isinstance(found, container)
        with tokenprune.wrap(model, EveryThird()):
            out = generate(model, inputs)
        compare(logits(out), family, model, inputs, probes.every_third(family, model, (2, 1)), new_tokens(out, inputs))

    @pytest.mark.skipif(not PRE_ENCODES, reason="this transformers takes no pre-encoded images")
    @families("llava", "internvl", "gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
    @pytest.mark.parametrize("when", ["before", "after", "before another wrap"])
    def test_images_encoded_beforehand(self, family, when, every_third):
        """The same answer as from pixels, or an error where nothing tells the images apart."""
        model, inputs = family.model(), family.inputs((2, 1))
        needs = ("pixel_values", "image_grid_thw", "image_sizes", "batch_num_images")
        pixels = {name: inputs[name] for name in needs if name in inputs}
        others = {name: value for name, value in inputs.items() if name not in needs[:1]}
        with tokenprune.wrap(model, every_third):
            expected = model(**inputs).logits
            encoded = {"image": model.get_image_features(**pixels, return_dict=True)}
        if when == "before":
            encoded = {"image": model.get_image_features(**pixels, return_dict=True)}
        with tokenprune.wrap(model, every_third):
            if when == "after":
                encoded = {"image": model.get_image_features(**pixels, return_dict=True)}
            if when == "before" and len(pixels) > 1:  # it is their arguments that tell
                with pytest.raises(errors.InputError, match="encode after wrap"):
                    model(**others, mm_encoder_outputs=encoded)
            else:
                assert torch.equal(model(**others, mm_encoder_outputs=encoded).logits, expected)


@dataclass(kw_only=True)
class Uneven(ProjectorPolicy):
    """Merges three neighbours each, with shares that differ."""

    keep: int | float | None = 1 / 3
    rounding: str = "floor"

    def select(self, tokens, k):
        g, n = tokens.shape
        source = (torch.arange(n) // 3).clamp_max(k - 1)
        shares = 1.0 + torch.arange(n) % 5
        shares = shares / torch.zeros(k).index_add(0, source, shares)[source]
        features = tokens.features.float() * shares[:, None]
        return Selection(
            indices=torch.arange(1, 3 * k, 3).expand(g, k),
            features=features.new_zeros(g, k, features.shape[-1]).index_add(1, source, features),
            source=source.expand(g, n),
            weights=shares.expand(g, n),
        )


@families("llava", "qwen3_vl", "qwen3_vl-video", "granite_docling", "granite4_vision")
def test_deepstack_rows_are_merged_with_the_shares_of_their_tokens(family):
    model, inputs = family.model(), family.inputs((2, 1))
    with tokenprune.wrap(model, Uneven()) as handle:
        out, report = generate(model, inputs), handle.report()
    length = inputs["input_ids"].shape[1]
    mix = [torch.eye(length) for _ in range(2)]
    for unit in report.units:
        shares = 1.0 + torch.arange(unit.total) % 5
        for place, slot in enumerate(unit.slots[unit.indices].tolist()):
            carried = unit.source == place
            mix[unit.sample][slot] = 0
            mix[unit.sample][slot, unit.slots[carried]] = shares[carried] / shares[carried].sum()
    keep = reference.keep_mask(inputs, report, probes.protected(family, model, (2, 1)))
    compare(logits(out), family, model, inputs, keep, new_tokens(out, inputs), mix=mix)


class TestLife:
    @families("llava", "qwen2_5_vl", "gemma3", "qwen3_5")
    @pytest.mark.parametrize("rewrapped", [False, True])
    def test_a_pruned_cache_after_remove(self, family, rewrapped, every_third):
        """Nobody sets its masks and positions right any longer; another handle does not know how it was cut."""
        model, inputs = family.model(), family.inputs((2, 1))
        handle = tokenprune.wrap(model, every_third)
        out = generate(model, inputs)
        handle.remove()
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, STEPS), value=1)
        given = {"input_ids": out.sequences, "attention_mask": mask, "past_key_values": out.past_key_values}
        if rewrapped:
            handle = tokenprune.wrap(model, every_third)
        with pytest.raises(errors.StaleCacheError, match="before handle.remove"):
            generate(model, given)
        handle.remove()

    @families("llava", "qwen2_5_vl")
    def test_a_policy_that_fails(self, family, every_third):
        """The handle is as before, and the call leaves nothing that another could use.

        A given cache is untouched in front of the language model; inside, earlier layers have added to it.
        """
        model, inputs = family.model(), family.inputs((1,))
        decoder, select = model.get_decoder(), type(every_third).select

        def fail(tokens, k):
            raise RuntimeError("no answer")

        with tokenprune.wrap(model, every_third) as handle:
            expected, cache = model(**inputs).logits, model(**inputs, use_cache=True).past_key_values
            length, report = cache.get_seq_length(), str(handle.report())
            handle.policies[0].select = fail
            for given in ({}, {"past_key_values": cache, "attention_mask": None, "position_ids": None}):
                with pytest.raises(RuntimeError, match="no answer"):
                    model(**{**inputs, **given})
            embeds = torch.randn(*inputs["input_ids"].shape, 64)
            unpruned = decoder(inputs_embeds=embeds).last_hidden_state
            assert unpruned.shape == embeds.shape
            assert every_third.stage == "layer" or cache.get_seq_length() == length
            assert str(handle.report()) == report
            handle.policies[0].select = select.__get__(handle.policies[0])
            assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(decoder(inputs_embeds=embeds).last_hidden_state, unpruned)

    def test_compiled_code_from_before(self, every_third):
        """Dynamo does not look at hooks again: without a reset the graph goes on unpruned, or pruned."""
        model, inputs = LLAVA.model(), LLAVA.inputs((1,))
        forward = torch.compile(model.forward, backend="eager")
        dense = forward(**inputs).logits
        with tokenprune.wrap(model, every_third):
            out = forward(**inputs).logits
        assert out.shape[1] == dense.shape[1] - 24
        assert (forward(**inputs).logits - dense).abs().max() < LLAVA.tolerance
        keep = probes.every_third(LLAVA, model, (1,))
        compare(out[:, -1:], LLAVA, model, inputs, keep, torch.zeros(1, 1).long())

    @families("llava", "qwen2_5_vl", "qwen3_vl", "gemma3")
    @pytest.mark.parametrize("logits", ["kept", "full"])
    def test_hidden_states_captured_before_during_and_after(self, family, logits, every_third):
        """Transformers hooks its layers when states are first asked for, and LLaVA's tower reads by such hooks."""
        inputs = family.inputs((2, 1))
        early, late = family.model(), family.model()
        dense = early(**inputs, output_hidden_states=True).hidden_states
        states = []
        for model in (early, late):
            with tokenprune.wrap(model, every_third, logits=logits):
                states.append(model(**inputs, output_hidden_states=True).hidden_states)
        for one, other in zip(*states, strict=True):
            assert torch.equal(one, other)
        lengths = [one.shape[1] for one in states[0]]
        whole = INSIDE + 1 if every_third.stage == "layer" else 0  # the embeddings, too
        assert lengths[:whole] == [dense[0].shape[1]] * whole
        assert max(lengths[whole:]) < dense[0].shape[1]
        for model in (early, late):
            again = model(**inputs, output_hidden_states=True).hidden_states
            assert all(torch.equal(one, other) for one, other in zip(again, dense, strict=True))

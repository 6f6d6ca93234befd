"""A model pruned inside its language model, among everything else that hooks, copies, moves and calls models."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import transformers
from transformers import AttentionInterface

import tokenprune
from tests import probes, reference
from tests.conftest import EveryThirdInside
from tests.families import BY_NAME, LLAVA, PRE_ENCODES, QWEN2_5_VL
from tests.probes import TOLERANCE, generate, logits, new_tokens, same, snapshot
from tests.test_environment import OFFLOADS, adapted, bitsandbytes_8bit
from tokenprune import FastV, PyramidDrop, SparseVLM, errors

# One that listens to a layer, one that renumbers and merges, one that enters layers twice
POLICIES = {
    "fastv": lambda: FastV(layer=2, keep=4),
    "sparsevlm": lambda: SparseVLM(layers=(0, 1, 2), keeps=(0.5, 0.3, 0.2)),
    "pyramiddrop": PyramidDrop,
}
every_policy = pytest.mark.parametrize("name", POLICIES)
both = pytest.mark.parametrize("family", [LLAVA, QWEN2_5_VL], ids=lambda family: family.name)


def families(*names):
    return pytest.mark.parametrize("family", [BY_NAME[name] for name in names], ids=lambda family: family.name)


def in_threads(work, expected):
    """Which of several (model, inputs) answer otherwise when they answer at the same time."""
    wrong = []

    def run(i, model, inputs):
        for _ in range(4):
            if not torch.equal(logits(generate(model, inputs)), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i, *one)) for i, one in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


class TestHandle:
    @every_policy
    @families("llava", "qwen2_5_vl", "qwen3_vl", "gemma3")
    def test_remove_restores_everything(self, family, name):
        model, inputs = family.model(), family.inputs((2, 1))
        model.generate(**inputs, max_new_tokens=2)  # transformers installs its own lazy hooks on first use
        before, dense = snapshot(model), model(**inputs).logits
        with tokenprune.wrap(model, POLICIES[name]()) as handle:
            during = snapshot(model)
            assert not same(before, during)
            assert before["config"] == during["config"]
            model.generate(**inputs, max_new_tokens=2)
        assert same(before, snapshot(model))
        assert torch.equal(model(**inputs).logits, dense)
        handle.remove()  # twice is harmless
        assert same(before, snapshot(model))

    @every_policy
    def test_enabled(self, name):
        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        dense = model(**inputs).logits
        handle = tokenprune.wrap(model, POLICIES[name]())
        whole = generate(model, inputs)
        handle.enabled = False
        assert torch.equal(model(**inputs).logits, dense)
        handle.enabled = True
        out = model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp_min(0), use_cache=True)
        handle.enabled = False  # a pruned cache goes on
        mask, steps = inputs["attention_mask"], [out.logits[:, -1]]
        for token in new_tokens(whole, inputs).T[:-1]:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            given = {"input_ids": token[:, None], "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1)[:, -1:]}
            steps.append(model(**given, past_key_values=out.past_key_values).logits[:, -1])
        assert (torch.stack(steps, 1) - logits(whole)).abs().max() < TOLERANCE

    def test_text_only(self):
        model, ids = LLAVA.model(), torch.randint(5, 140, (1, 9))
        dense = model(input_ids=ids).logits
        with tokenprune.wrap(model, "pyramiddrop") as handle:
            assert torch.equal(model(input_ids=ids).logits, dense)
            assert "nothing was removed" in str(handle.report())

    @families("llava", "qwen3_vl")
    def test_nothing_of_a_forward_stays_alive(self, family):
        """Neither what the decoder was given, nor what was made of it for its layers."""
        model, inputs, seen = family.model(), family.inputs((2, 1)), []

        def note(module, args, kwargs):
            for one in (*args, *kwargs.values()):
                seen.extend(weakref.ref(x) for x in (one if isinstance(one, list) else [one]) if torch.is_tensor(x))

        watched = [model.get_decoder(), *model.get_decoder().layers]
        hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in watched]
        with tokenprune.wrap(model, "fastv", keep=4) as handle:
            hooks += [module.register_forward_pre_hook(note, with_kwargs=True) for module in watched]
            cache = weakref.ref(model(**inputs, use_cache=True).past_key_values)
            gc.collect()
            assert len(seen) > 8
            given = set(map(id, inputs.values()))  # the caller's
            assert not [type(one()) for one in (*seen, cache) if one() is not None and id(one()) not in given]
            assert handle.report().kept == 12
        for hook in hooks:
            hook.remove()


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    @every_policy
    @families("llava", "qwen3_vl")
    def test_a_copy_is_a_plain_model(self, family, name, copied):
        dense_model, model, inputs = family.model(), family.model(), family.inputs((2, 1))
        dense = dense_model(**inputs).logits
        handle = tokenprune.wrap(model, POLICIES[name]())
        copied = copied(model)  # before the first forward, after which transformers' own hooks resist pickling
        pruned = model(**inputs).logits
        assert not torch.equal(pruned[:, -1], dense[:, -1])
        assert torch.equal(copied(**inputs).logits, dense)
        handle.remove()
        del model, handle
        gc.collect()
        with tokenprune.wrap(copied, POLICIES[name]()):
            assert torch.equal(copied(**inputs).logits, pruned)
        assert torch.equal(copied(**inputs).logits, dense)
        assert copied.config.to_dict() == dense_model.config.to_dict()

    def test_saving_is_not_affected(self, tmp_path):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        dense = model(**inputs).logits
        with tokenprune.wrap(model, "pyramiddrop"):
            model.save_pretrained(tmp_path)
        again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        assert torch.equal(again(**inputs).logits, dense)
        assert not any("tokenprune" in path.read_text() for path in tmp_path.glob("*.json"))


class TestSeveral:
    @every_policy
    def test_two_models_in_two_threads(self, name):
        work = [(LLAVA.model(), LLAVA.inputs((2, 1))), (QWEN2_5_VL.model(), QWEN2_5_VL.inputs((1, 2)))]
        handles = [tokenprune.wrap(model, POLICIES[name]()) for model, _ in work]
        expected, kept = [logits(generate(*one)) for one in work], [handle.report().kept for handle in handles]
        assert not in_threads(work, expected)
        assert [handle.report().kept for handle in handles] == kept

    @every_policy
    def test_two_threads_on_one_model(self, name):
        model = QWEN2_5_VL.model()
        work = [(model, QWEN2_5_VL.inputs((1,))), (model, QWEN2_5_VL.inputs((2, 1)))]
        with tokenprune.wrap(model, POLICIES[name]()):
            assert not in_threads(work, [logits(generate(*one)) for one in work])


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # accelerate's list of single parameters
class TestOffloading:
    @pytest.mark.parametrize("first", ["wrap", "offload"])
    @pytest.mark.parametrize("kind", ["cpu", "sharded"])
    @every_policy
    @families("llava", "qwen3_vl")
    def test_offloaded_equals_loaded(self, family, name, kind, first, tmp_path):
        model, inputs = family.model(), family.inputs((2, 1))
        dense = logits(generate(model, inputs))
        with tokenprune.wrap(model, POLICIES[name]()) as handle:
            expected, kept = logits(generate(model, inputs)), handle.report().kept
        if first == "wrap":
            handle = tokenprune.wrap(model, POLICIES[name]())
        OFFLOADS[kind](model, tmp_path)
        if first == "offload":
            handle = tokenprune.wrap(model, POLICIES[name]())
        assert any(parameter.is_meta for parameter in model.parameters())
        assert torch.equal(logits(generate(model, inputs)), expected)
        assert handle.report().kept == kept
        assert all(parameter.is_meta for parameter in model.get_decoder().layers[1].parameters())  # entered twice
        handle.remove()
        assert torch.equal(logits(generate(model, inputs)), dense)

    def test_deepstack_method_of_the_instance(self):
        """What somebody else put there is used, and is there afterwards."""
        family, called = BY_NAME["qwen3_vl"], []
        model, inputs = family.model(), family.inputs((2, 1))
        decoder = model.get_decoder()

        def counted(*args):
            called.append(args)
            return type(decoder)._deepstack_process(decoder, *args)

        decoder._deepstack_process = counted
        with tokenprune.wrap(model, "fastv", keep=4):
            model(**inputs)
        assert called
        assert vars(decoder)["_deepstack_process"] is counted

    def test_deepstack_rows_that_are_moved(self):
        """accelerate hands the decoder other tensors than its caller gave, where they are on another device."""
        family = BY_NAME["qwen3_vl"]
        model, inputs = family.model(), family.inputs((2, 1))
        with tokenprune.wrap(model, "fastv", keep=4):
            expected = model(**inputs).logits
            decoder = model.get_decoder()
            forward = decoder.forward

            def moved(*args, deepstack_visual_embeds=None, **kwargs):
                rows = None if deepstack_visual_embeds is None else [one.clone() for one in deepstack_visual_embeds]
                return forward(*args, deepstack_visual_embeds=rows, **kwargs)

            decoder.forward = moved
            assert torch.equal(model(**inputs).logits, expected)


def test_compiled_forward():
    model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
    dense = model(**inputs).logits
    with tokenprune.wrap(model, PyramidDrop(layers=(2,), keeps=(0.3,))):
        expected = model(**inputs).logits
        assert (torch.compile(model.forward, backend="eager")(**inputs).logits - expected).abs().max() < TOLERANCE
    assert torch.equal(model(**inputs).logits, dense)


@every_policy
def test_adapters(name):
    """The same model as with its adapter merged into the weights."""
    inputs, merged, outside = LLAVA.inputs((2, 1)), adapted(LLAVA.model()).merge_and_unload(), adapted(LLAVA.model())
    with tokenprune.wrap(merged, POLICIES[name]()) as handle:
        expected, units = logits(generate(merged, inputs)), handle.report().units
    dense = logits(generate(outside, inputs))
    before = snapshot(outside)
    with tokenprune.wrap(outside, POLICIES[name]()) as handle:
        assert (logits(generate(outside, inputs)) - expected).abs().max() < TOLERANCE
        assert [unit.indices.tolist() for unit in handle.report().units] == [unit.indices.tolist() for unit in units]
        with outside.disable_adapter():
            assert (logits(generate(outside, inputs)) - expected).abs().max() > 1e-2
    assert same(before, snapshot(outside))
    assert torch.equal(logits(generate(outside, inputs)), dense)


@both
def test_weights_of_eight_bits(family):
    model, inputs = family.model(), family.inputs((2, 1))
    bitsandbytes_8bit(model)
    with reference.dropping_at(2), tokenprune.wrap(model, "fastv", keep=4) as handle:
        out = generate(model, inputs)
        keep = reference.keep_mask(inputs, handle.report())
        handle.remove()
        expected = reference.logits(model, inputs, keep, new_tokens(out, inputs))
    assert (logits(out) - expected).abs().max() < TOLERANCE


class TestCaches:
    @pytest.mark.skipif(not PRE_ENCODES, reason="this transformers has no fp8 cache, and others need further packages")
    @every_policy
    def test_quantised(self, name):
        """Only what later steps read is rounded, and every layer holds what it saw."""
        model, inputs = LLAVA.model(), LLAVA.inputs((1,))
        with tokenprune.wrap(model, POLICIES[name]()) as handle:
            exact = generate(model, inputs)
            out = generate(model, inputs, cache_implementation="quantized", cache_config={"backend": "fp8"})
            assert torch.equal(out.logits[0], exact.logits[0])
            lengths = [out.past_key_values.get_seq_length(i) for i in range(4)]
            assert lengths == [exact.past_key_values.get_seq_length(i) for i in range(4)]
            assert lengths[0] > lengths[3] == handle.report().events[-1].lengths[0] + len(out.logits) - 1
            steps = 1 + int((new_tokens(out, inputs) == new_tokens(exact, inputs)).long().cumprod(1).sum())
            difference = (logits(out) - logits(exact))[:, :steps].abs().amax((0, 2))
            assert len(difference) > 2  # with the same words so far
            assert 1e-3 < difference.max() < 0.2  # of the unpruned model 0.13; a wrong mask or position costs 0.1 to 4

    @pytest.mark.skipif(not PRE_ENCODES, reason="this transformers has no fp8 cache, and others need further packages")
    def test_quantised_in_a_second_turn(self):
        model, inputs = LLAVA.model(), LLAVA.inputs((1,))
        del inputs["attention_mask"]
        with tokenprune.wrap(model, "pyramiddrop"):
            quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
            cache = generate(model, inputs, **quantised).past_key_values
            with pytest.raises(errors.UnsupportedModelError, match="keeps earlier keys in a .*default cache"):
                model(**inputs, past_key_values=cache)

    @families("llava", "qwen2_5_vl", "gemma3", "gemma3-full", "gemma4", "mistral3")
    def test_static(self, family):
        """Gemma's masks of images that see themselves are made before the decoder, over all slots."""
        model, inputs = family.model(), family.inputs((1,))
        with reference.dropping_at(2), tokenprune.wrap(model, EveryThirdInside()) as handle:
            out = generate(model, inputs, cache_implementation="static")
            handle.remove()
            keep = probes.every_third(family, model, (1,))
            expected = reference.logits(model, inputs, keep, new_tokens(out, inputs))
        assert (logits(out) - expected).abs().max() < family.tolerance

    @every_policy
    def test_after_remove(self, name):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        with tokenprune.wrap(model, POLICIES[name]()):
            with torch.no_grad():
                cache = model(**inputs, use_cache=True).past_key_values
            copied, before = copy.deepcopy(cache), [layer.get_seq_length() for layer in cache.layers]
            model(input_ids=torch.tensor([[5]]), past_key_values=copied)
            assert [layer.get_seq_length() for layer in cache.layers] == before
        for one in (cache, copied):
            with pytest.raises(errors.StaleCacheError, match="past_key_values"):
                model(input_ids=torch.tensor([[5]]), past_key_values=one)
        cache.reset()  # forgets the pruned prompt
        assert model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits.isfinite().all()


class TestAttention:
    """The implementation stays what it is, and computes what it computed before, no more often."""

    @every_policy
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_calls(self, monkeypatch, name, attention):
        model, inputs, called = LLAVA.model(attention=attention), LLAVA.inputs((2, 1)), []
        module = __import__(type(model.get_decoder()).__module__, fromlist=["eager_attention_forward"])

        def counting(function, kind):
            def count(of, *args, **kwargs):
                if hasattr(of, "layer_idx"):  # the decoder's
                    called.append((kind, of.layer_idx, kwargs.get("output_attentions")))
                return function(of, *args, **kwargs)

            return count

        for kind in AttentionInterface._global_mapping:
            function = counting(AttentionInterface._global_mapping[kind], kind)
            monkeypatch.setitem(AttentionInterface._global_mapping, kind, function)
        monkeypatch.setattr(module, "eager_attention_forward", counting(module.eager_attention_forward, "eager"))
        generate(model, inputs)
        dense = [one for one in called if not one[0].startswith("tokenprune")]
        assert {kind for kind, _, _ in dense} == {attention}
        called.clear()
        with tokenprune.wrap(model, POLICIES[name]()):
            generate(model, inputs)
            assert model.config.text_config._attn_implementation == attention
        pruned = [(kind, layer, asked) for kind, layer, asked in called if not kind.startswith("tokenprune")]
        assert [layer for _, layer, _ in pruned] == [layer for _, layer, _ in dense]
        assert pruned == dense

    @every_policy
    @both
    def test_changed_while_wrapped(self, family, name):
        model, inputs = family.model(), family.inputs((2, 1))
        with tokenprune.wrap(model, POLICIES[name]()):
            pruned = logits(generate(model, inputs))
            model.set_attn_implementation("eager")
            seen = model.generate(**inputs, max_new_tokens=1, output_attentions=True, return_dict_in_generate=True)
            assert len(seen.attentions[0]) == 4  # sdpa answers none
            assert (logits(generate(model, inputs)) - pruned).abs().max() < TOLERANCE
        assert {layer.self_attn.config._attn_implementation for layer in model.get_decoder().layers} == {"eager"}
        model.set_attn_implementation("sdpa")
        with tokenprune.wrap(model, POLICIES[name]()):
            assert torch.equal(logits(generate(model, inputs)), pruned)

    def test_a_class_derived_elsewhere(self):
        """Eager attention is no registered function, but the one that the module's forward finds in its file."""
        model, inputs = LLAVA.model(attention="eager"), LLAVA.inputs((2, 1))
        with tokenprune.wrap(model, "fastv", keep=4):
            expected = model(**inputs).logits
        for layer in model.get_decoder().layers:
            layer.self_attn.__class__ = type("Derived", (type(layer.self_attn),), {"__module__": __name__})
        with tokenprune.wrap(model, "fastv", keep=4):
            assert torch.equal(model(**inputs).logits, expected)

    @every_policy
    def test_attentions_and_hidden_states(self, name):
        """Every layer's are of the sequence that it read."""
        model, inputs = LLAVA.model(attention="eager"), LLAVA.inputs((2, 1))
        with tokenprune.wrap(model, POLICIES[name]()) as handle:
            plain = model(**inputs).logits
            out = model(**inputs, output_attentions=True, output_hidden_states=True)
            report = handle.report()
        assert torch.equal(out.logits, plain)
        at = {event.layer: max(event.lengths) for event in report.events}
        lengths = [inputs["input_ids"].shape[1]]
        for layer in range(4):
            lengths.append(at.get(layer, lengths[-1]))
        assert [one.shape[-2:] for one in out.attentions] == [(n, n) for n in lengths[1:]]
        assert [one.shape[1] for one in out.hidden_states] == lengths
        assert lengths[-1] < lengths[0]

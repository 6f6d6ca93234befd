"""wrap, Handle, budgets per unit, reports, and what policies get to see."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import transformers

import tokenprune
from tests.families import FAMILIES, LLAVA, PRE_ENCODES, QWEN2_5_VL, QWEN2_5_VL_VIDEO, REPEATABLE
from tests.probes import same, snapshot, spy
from tokenprune import errors


class TestHandle:
    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_remove_restores_everything(self, family):
        model, inputs = family.model(), family.inputs((2, 1))
        model.generate(**inputs, max_new_tokens=2)  # transformers installs its own lazy hooks on first use
        before, dense = snapshot(model), model(**inputs).logits
        with tokenprune.wrap(model, "divprune", keep=4) as handle:
            assert not same(before, snapshot(model))
            model.generate(**inputs, max_new_tokens=2)
        assert same(before, snapshot(model))
        assert torch.equal(model(**inputs).logits, dense)
        handle.remove()  # twice is harmless
        assert "removed" in repr(handle)

    def test_enabled(self):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        dense = model(**inputs).logits
        handle = tokenprune.wrap(model, "uniform", keep=4)
        handle.enabled = False
        assert torch.equal(model(**inputs).logits, dense)
        assert "off" in repr(handle)
        handle.enabled = True
        assert model(**inputs).logits.shape[1] == dense.shape[1] - 32
        assert "DivPrune" not in repr(handle)
        assert "Uniform" in repr(handle)

    def test_a_pruned_cache_goes_on_while_disabled(self, every_third):
        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        handle = tokenprune.wrap(model, every_third)
        whole = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        out = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=True)
        handle.enabled = False
        tokens = [out.logits[:, -1].argmax(-1)]
        for _ in range(3):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            at = (mask.cumsum(1) - 1)[:, -1:]
            given = {"input_ids": tokens[-1][:, None], "attention_mask": mask, "position_ids": at}
            tokens.append(model(**given, past_key_values=out.past_key_values).logits[:, -1].argmax(-1))
        assert torch.stack(tokens, 1).tolist() == whole.sequences[:, ids.shape[1] :].tolist()

    def test_a_pruned_cache_refuses_to_go_on_after_remove(self):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        with tokenprune.wrap(model, "uniform", keep=4):
            cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(errors.StaleCacheError, match="past_key_values"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)
        cache.reset()  # forgets the pruned prompt
        assert model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits.isfinite().all()

    def test_text_only_prompt(self):
        model = LLAVA.model()
        ids = torch.randint(5, 140, (1, 9))
        dense = model(input_ids=ids).logits
        with tokenprune.wrap(model, "divprune", keep=4) as handle:
            assert torch.equal(model(input_ids=ids).logits, dense)
            assert "nothing was removed" in str(handle.report())

    def test_two_models_do_not_meet(self):
        one, two = LLAVA.model(), LLAVA.model(seed=1)
        inputs = LLAVA.inputs((1, 2))
        alone = []
        for model, keep in ((one, 4), (two, 9)):
            with tokenprune.wrap(model, "divprune", keep=keep):
                alone.append(model(**inputs).logits)
        with tokenprune.wrap(one, "divprune", keep=4) as a, tokenprune.wrap(two, "divprune", keep=9) as b:
            assert torch.equal(one(**inputs).logits, alone[0])
            assert torch.equal(two(**inputs).logits, alone[1])
            assert torch.equal(one(**inputs).logits, alone[0])
            assert (a.report().kept, b.report().kept) == (12, 27)

    def test_two_threads_on_one_model(self):
        model, batches = LLAVA.model(), [LLAVA.inputs((1,)), LLAVA.inputs((2, 1))]
        with tokenprune.wrap(model, "divprune", keep=5):
            alone = [model(**inputs).logits for inputs in batches]
            wrong = []

            def run(inputs, expected):
                for _ in range(20):
                    if not torch.equal(model(**inputs).logits, expected):
                        wrong.append(inputs["input_ids"].shape)

            threads = [threading.Thread(target=run, args=pair) for pair in zip(batches, alone, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_of_a_wrapped_model_is_a_plain_model(self, copied):
        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        with tokenprune.wrap(model, "uniform", keep=4) as handle:
            copied = copied(model)  # before the first forward, after which transformers' own hooks resist pickling
            pruned = model(**inputs).logits
            handle.enabled = False
            dense = model(**inputs).logits
            handle.enabled = True
            assert torch.equal(copied(**inputs).logits, dense)
            with tokenprune.wrap(copied, "uniform", keep=9) as other:
                copied.generate(**inputs, max_new_tokens=2)
                model(**inputs)
                assert torch.equal(model(**inputs).logits, pruned)
                assert (handle.report().kept, other.report().kept) == (12, 27)
            assert torch.equal(copied(**inputs).logits, dense)

    def test_saving_is_not_affected(self, tmp_path):
        model = LLAVA.model()
        with tokenprune.wrap(model, "uniform", keep=4):
            model.save_pretrained(tmp_path)
        again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        assert torch.equal(again(**LLAVA.inputs()).logits, model(**LLAVA.inputs()).logits)


class TestBudget:
    @pytest.mark.parametrize(
        ("family", "per", "expected"),
        [
            (LLAVA, "image", [(9, 36), (9, 36), (9, 36)]),
            (LLAVA, "crop", [(9, 36), (9, 36), (9, 36)]),
            (LLAVA, "frame", [(9, 36), (9, 36), (9, 36)]),
            (LLAVA, "prompt", [(18, 72), (9, 36)]),
            (QWEN2_5_VL, "image", [(6, 24), (9, 36), (6, 24)]),
            (QWEN2_5_VL_VIDEO, "image", [(6, 24), (12, 48), (6, 24)]),
            (QWEN2_5_VL_VIDEO, "frame", [(2, 8)] * 3 + [(4, 16)] * 3 + [(2, 8)] * 3),
            (QWEN2_5_VL_VIDEO, "prompt", [(18, 72), (6, 24)]),
        ],
        ids=lambda value: getattr(value, "name", value if isinstance(value, str) else ""),
    )
    def test_counts_per_unit(self, family, per, expected):
        model, inputs = family.model(), family.inputs((2, 1))
        with tokenprune.wrap(model, "divprune", keep=0.25, per=per) as handle:
            model(**inputs)
        assert [(unit.kept, unit.total) for unit in handle.report().units] == expected

    def test_an_int_beyond_the_unit_keeps_all_and_is_no_error(self):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        dense = model(**inputs).logits
        with tokenprune.wrap(model, "divprune", keep=1000):
            assert torch.equal(model(**inputs).logits, dense)

    def test_the_batch_does_not_change_a_selection(self):
        """Each sample alone keeps what it keeps in a batch, random policy included."""
        model, both = LLAVA.model(), LLAVA.inputs((1, 1))
        for policy in ("random", "cdpruner", "divprune"):
            with tokenprune.wrap(model, policy, keep=7) as handle:
                model(**both)
                together = [unit.indices.tolist() for unit in handle.report().units]
                for b in range(2):
                    valid = both["attention_mask"][b].bool()
                    model(input_ids=both["input_ids"][b : b + 1, valid], pixel_values=both["pixel_values"][b : b + 1])
                    assert handle.report().units[0].indices.tolist() == together[b], policy
            if policy == "random":
                assert together[0] != together[1]


class TestReport:
    def test_numbers(self):
        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        with tokenprune.wrap(model, "uniform", keep=4, timing=True) as handle:
            model(**inputs)
        report = handle.report()
        length = inputs["attention_mask"].sum(1).tolist()
        assert report.lengths == [(length[0], length[0] - 64), (length[1], length[1] - 32)]
        assert (report.kept, report.total) == (12, 108)
        assert report.selection_ms > 0
        assert report.units[0].grid == (1, 6, 6)
        cost = report.cost()
        assert cost["kv_bytes_pruned"] == 4 * 2 * 2 * 16 * 4 * (sum(length) - 96)
        assert cost["prefill_flops_pruned"] < cost["prefill_flops_dense"]
        assert "kept 4/36" in str(report)

    def test_the_handle_keeps_no_cache_and_no_pixels_alive(self):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        with tokenprune.wrap(model, "uniform", keep=4):
            cache = weakref.ref(model(**inputs, use_cache=True).past_key_values)
            pixels = weakref.ref(inputs.pop("pixel_values"))
            del inputs
            gc.collect()
            assert cache() is None
            assert pixels() is None

    def test_selection_time_only_when_asked(self):
        model = LLAVA.model()
        with tokenprune.wrap(model, "uniform", keep=4) as handle:
            model(**LLAVA.inputs())
        assert handle.report().selection_ms is None


class TestInstruction:
    """Query-aware policies read the prompt, or what the user says it is."""

    class Tokenizer:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [int(word) for word in text.split()]}

        def decode(self, ids, skip_special_tokens):
            return " ".join(map(str, ids.tolist()))

    def test_default_is_all_text_of_the_sample(self):
        seen = []
        policy = tokenprune.CDPruner(keep=4, relevance=spy(seen, {"text", "features"}))
        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        with tokenprune.wrap(model, policy):
            model(**inputs)
        text = model.get_input_embeddings()(inputs["input_ids"])
        valid = inputs["attention_mask"].bool() & (inputs["input_ids"] != 150)
        for i, b in enumerate([0, 0, 1]):
            assert torch.equal(seen[0].text[i][seen[0].text_mask[i]], text[b][valid[b]])

    def test_what_the_user_says(self):
        seen = []
        policy = tokenprune.CDPruner(keep=4, relevance=spy(seen, {"text", "features", "instruction"}))
        model, inputs = LLAVA.model(), LLAVA.inputs((1, 1))
        with tokenprune.wrap(model, policy, tokenizer=self.Tokenizer()) as handle:
            model(**inputs)
            handle.instruction = ["7 8 9", "11"]
            model(**inputs)
            handle.instruction = ["1", "2", "3"]
            with pytest.raises(errors.UnsupportedPolicyError, match="3 lines for a batch of 2"):
                model(**inputs)
        valid = inputs["attention_mask"].bool() & (inputs["input_ids"] != 150)
        prompts = [" ".join(map(str, ids[v].tolist())) for ids, v in zip(inputs["input_ids"], valid, strict=True)]
        assert seen[0].instruction == prompts
        assert seen[1].instruction == ["7 8 9", "11"]
        table = model.get_input_embeddings()
        assert torch.equal(seen[1].text[0], table(torch.tensor([7, 8, 9])))
        assert seen[1].text_mask.tolist() == [[True] * 3, [True, False, False]]

    def test_without_tokenizer(self):
        policy = tokenprune.CDPruner(keep=4, relevance=spy([], {"instruction"}))
        model = LLAVA.model()
        with tokenprune.wrap(model, policy), pytest.raises(errors.UnsupportedPolicyError, match="tokenizer"):
            model(**LLAVA.inputs())

    @pytest.mark.parametrize("mode", ["forward", "generate", "beams"])
    def test_encoder_features_belong_to_their_image(self, mode):
        """What entered the projector, for every image of every sample, also when beams repeat the samples."""
        seen, entered = [], []
        model, inputs = LLAVA.model(), LLAVA.inputs(REPEATABLE)
        projector = model.model.multi_modal_projector
        hook = projector.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
        with tokenprune.wrap(model, tokenprune.CDPruner(keep=4, relevance=spy(seen, {"encoder", "features"}))):
            if mode == "forward":
                model(**inputs)
            else:
                model.generate(**inputs, max_new_tokens=2, num_beams=3 if mode == "beams" else 1)
        hook.remove()
        order = range(len(entered[0]))
        if mode == "beams" and PRE_ENCODES:
            order = [0, 1] * 3 + [2] * 3
        assert torch.equal(seen[0].encoder[:, :, 0], entered[0][list(order)])
        assert torch.equal(projector(seen[0].encoder[:, :, 0]), seen[0].features)

    @pytest.mark.skipif(not PRE_ENCODES, reason="this transformers takes no pre-encoded images")
    def test_features_encoded_elsewhere_have_no_encoder_features(self):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        pixels = inputs.pop("pixel_values")
        encoded = {"image": model.get_image_features(pixels, return_dict=True)}
        with tokenprune.wrap(model, tokenprune.CDPruner(keep=4, relevance=spy([], {"encoder", "features"}))):
            with pytest.raises(errors.UnsupportedPolicyError, match="pass pixel_values"):
                model(**inputs, mm_encoder_outputs=encoded)
        with tokenprune.wrap(model, "divprune", keep=4) as handle:
            model(**inputs, mm_encoder_outputs=encoded)
            assert handle.report().kept == 4

    @pytest.mark.skipif(not PRE_ENCODES, reason="this transformers takes no pre-encoded images")
    def test_features_encoded_while_disabled_are_their_own(self):
        seen, model, inputs = [], LLAVA.model(), LLAVA.inputs()
        policy = tokenprune.CDPruner(keep=4, relevance=spy(seen, {"encoder", "features"}))
        with tokenprune.wrap(model, policy) as handle:
            model(**inputs)
            handle.enabled = False
            encoded = {"image": model.get_image_features(-inputs.pop("pixel_values"), return_dict=True)}
            handle.enabled = True
            model(**inputs, mm_encoder_outputs=encoded)
        assert torch.equal(model.model.multi_modal_projector(seen[1].encoder[:, :, 0]), seen[1].features)
        assert not torch.equal(seen[0].features, seen[1].features)

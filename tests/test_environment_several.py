"""Wrapped models beside each other and inside of others: threads, copies, files, parallel training."""

import copy
import gc
import io
import threading
import weakref

import pytest
import torch

import tokenprune
from tests.families import LLAVA, QWEN2_5_VL
from tests.probes import generate, logits
from tokenprune import errors


def supervised(inputs):
    ids = inputs["input_ids"]
    return {**inputs, "labels": ids.masked_fill((ids >= 140) | (inputs["attention_mask"] == 0), -100)}


class TestParallel:
    def test_what_calls_the_model_for_it(self):
        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        outside = torch.nn.DataParallel(model)
        with pytest.raises(errors.UnsupportedModelError, match=r"DataParallel only calls.*wrap\(model\.module"):
            tokenprune.wrap(outside, "divprune", keep=4)
        with tokenprune.wrap(outside.module, "divprune", keep=4):
            assert torch.equal(outside(**inputs).logits, model(**inputs).logits)
            assert outside(**inputs).logits.shape[1] < inputs["input_ids"].shape[1]

    def test_distributed_training_step(self):
        """Gradients that DistributedDataParallel collects are those of the model alone."""
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            model, batch = LLAVA.model(), supervised(LLAVA.inputs((2, 1)))
            with tokenprune.wrap(model, "divprune", keep=4):
                model(**batch).loss.backward()
                weight = model.get_decoder().layers[0].self_attn.q_proj.weight
                expected, weight.grad = weight.grad, None
                model.zero_grad()
                outside = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
                with pytest.raises(errors.UnsupportedModelError, match="DistributedDataParallel only calls"):
                    tokenprune.wrap(outside, "divprune", keep=4)
                outside(**batch).loss.backward()
            assert torch.equal(weight.grad, expected)
        finally:
            torch.distributed.destroy_process_group()


class TestSeveral:
    """Models, threads, copies and files beside each other."""

    def test_two_threads_with_a_model_each(self):
        models, inputs = [LLAVA.model(), QWEN2_5_VL.model()], [LLAVA.inputs((2, 1)), QWEN2_5_VL.inputs((1, 2))]
        handles = [tokenprune.wrap(model, "divprune", keep=keep) for model, keep in zip(models, (4, 9), strict=True)]
        expected = [logits(generate(model, batch)) for model, batch in zip(models, inputs, strict=True)]
        wrong = []

        def run(model, batch, answer):
            for _ in range(4):
                if not torch.equal(logits(generate(model, batch)), answer):
                    wrong.append(type(model).__name__)

        threads = [threading.Thread(target=run, args=work) for work in zip(models, inputs, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert [handle.report().kept for handle in handles] == [12, 27]

    def test_generate_in_two_threads_on_one_model(self):
        model, batches = QWEN2_5_VL.model(), [QWEN2_5_VL.inputs((1,)), QWEN2_5_VL.inputs((2, 1))]
        with tokenprune.wrap(model, "divprune", keep=5):
            alone = [logits(generate(model, batch)) for batch in batches]
            wrong = []

            def run(batch, expected):
                for _ in range(4):
                    if not torch.equal(logits(generate(model, batch)), expected):
                        wrong.append(batch["input_ids"].shape)

            threads = [threading.Thread(target=run, args=work) for work in zip(batches, alone, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong

    def test_wrap_remove_wrap(self):
        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        first = tokenprune.wrap(model, "divprune", keep=4)
        expected = logits(generate(model, inputs))
        first.remove()
        second = tokenprune.wrap(model, "divprune", keep=4)
        first.remove()  # a handle that is gone takes nothing from the next one
        assert torch.equal(logits(generate(model, inputs)), expected)
        assert second.report().kept == 12
        second.remove()

    def test_a_copy_outlives_the_original(self):
        model, inputs = QWEN2_5_VL.model(), QWEN2_5_VL.inputs((2, 1))
        dense = logits(generate(model, inputs))
        handle = tokenprune.wrap(model, tokenprune.CDPruner(keep=4, features="pre_merger"))
        pruned, copied = logits(generate(model, inputs)), copy.deepcopy(model)
        handle.remove()
        del model, handle
        gc.collect()
        assert torch.equal(logits(generate(copied, inputs)), dense)
        with tokenprune.wrap(copied, tokenprune.CDPruner(keep=4, features="pre_merger")):
            assert torch.equal(logits(generate(copied, inputs)), pruned)

    def test_the_state_dict_is_that_of_the_plain_model(self, tmp_path):
        model, inputs = QWEN2_5_VL.model(), QWEN2_5_VL.inputs()
        file, plain = io.BytesIO(), QWEN2_5_VL.model(seed=1)
        with tokenprune.wrap(model, "divprune", keep=4):
            torch.save(model.state_dict(), file)
            model.save_pretrained(tmp_path)
            file.seek(0)
            plain.load_state_dict(torch.load(file))
            loaded = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(plain(**inputs).logits, model(**inputs).logits)
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        assert not any("tokenprune" in path.read_text() for path in tmp_path.glob("*.json"))

    def test_loading_weights_into_a_wrapped_model(self):
        model, other, inputs = LLAVA.model(), LLAVA.model(seed=1), LLAVA.inputs((2, 1))
        with tokenprune.wrap(other, "divprune", keep=4):
            expected = logits(generate(other, inputs))
        with tokenprune.wrap(model, "divprune", keep=4):
            model.load_state_dict(other.state_dict())
            assert torch.equal(logits(generate(model, inputs)), expected)

    def test_a_forgotten_handle_leaves_the_model_wrapped_and_is_freed_with_it(self):
        model, inputs = LLAVA.model(), LLAVA.inputs()
        tokenprune.wrap(model, "uniform", keep=4)
        gc.collect()
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1] - 32
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None

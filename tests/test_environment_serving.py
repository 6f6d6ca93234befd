"""A pruned model behind what people talk to it with: processors, pipelines, streams, chats and their caches."""

import threading

import pytest
import torch
import transformers.integrations.flex_attention
from PIL import Image
from torch.nn.attention import flex_attention
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    ContinuousBatchingConfig,
    TextIteratorStreamer,
    pipeline,
)
from transformers.cache_utils import QuantizedCache

import tokenprune
from tests import reference
from tests.families import BY_NAME, LLAVA, PRE_ENCODES, QWEN2_5_VL
from tests.probes import TOLERANCE, generate, logits, new_tokens
from tokenprune import errors

both = pytest.mark.parametrize("family", [LLAVA, QWEN2_5_VL], ids=lambda family: family.name)
QUESTION = "<image> what color is the circle ?"
CHAT = (
    "{% for turn in messages %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def picture(seed):
    values = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """(model, processor) from a folder, with weights wide enough that answers depend on the picture."""
    model, processor = (kind.from_pretrained(tiny_checkpoint) for kind in (AutoModelForImageTextToText, AutoProcessor))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    model.tie_weights()
    processor.chat_template = CHAT
    settings = model.generation_config
    settings.suppress_tokens, settings.eos_token_id = [processor.tokenizer.convert_tokens_to_ids("<image>")], None
    settings.max_new_tokens = 8
    return model.eval(), processor


@pytest.fixture
def wrapped(loaded):
    model, processor = loaded
    with tokenprune.wrap(model, "divprune", keep=9) as handle:
        yield model, processor, handle


def answers(model, processor, texts, images):
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    ids = model.generate(**inputs)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class TestAutoClassesAndPipelines:
    def test_the_pictures_matter(self, wrapped):
        """What the tests below compare is not the same for any picture, nor dense."""
        model, processor, handle = wrapped
        pruned = [answers(model, processor, [QUESTION], [picture(seed)]) for seed in range(3)]
        assert len({answer[0] for answer in pruned}) > 1
        assert (handle.report().kept, handle.report().total) == (9, 256)
        handle.enabled = False
        assert pruned != [answers(model, processor, [QUESTION], [picture(seed)]) for seed in range(3)]

    def test_pipeline(self, wrapped):
        model, processor, handle = wrapped
        expected = answers(model, processor, [QUESTION], [picture(1)])[0]
        talk = pipeline("image-text-to-text", model=model, processor=processor)
        assert talk(text=QUESTION, images=picture(1), return_full_text=False)[0]["generated_text"].split() == (
            expected.split()
        )
        assert handle.report().kept == 9

    def test_pipeline_with_a_batch(self, wrapped):
        model, processor, _ = wrapped
        texts, images = [QUESTION, "<image> how many ?", QUESTION], [[picture(seed)] for seed in range(3)]
        expected = [answers(model, processor, [text], image)[0] for text, image in zip(texts, images, strict=True)]
        talk = pipeline("image-text-to-text", model=model, processor=processor)
        out = talk(text=texts, images=images, batch_size=3, return_full_text=False)
        assert [one["generated_text"].split() for one in out] == [answer.split() for answer in expected]

    def test_pipeline_with_a_chat_of_two_pictures(self, wrapped):
        model, processor, handle = wrapped
        turns = [
            {"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "what ?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "circle"}]},
            {
                "role": "user",
                "content": [{"type": "image", "image": picture(2)}, {"type": "text", "text": "how many ?"}],
            },
        ]
        text = processor.apply_chat_template(turns)
        assert text.count("<image>") == 2
        expected = answers(model, processor, [text], [picture(1), picture(2)])[0]
        talk = pipeline("image-text-to-text", model=model, processor=processor)
        assert talk(text=turns, return_full_text=False)[0]["generated_text"].split() == expected.split()
        assert [unit.kept for unit in handle.report().units] == [9, 9]

    def test_stream_from_a_thread(self, wrapped):
        model, processor, handle = wrapped
        expected = answers(model, processor, [QUESTION], [picture(1)])[0]
        stream = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
        inputs = processor(text=[QUESTION], images=[picture(1)], return_tensors="pt")
        thread = threading.Thread(target=model.generate, kwargs={**inputs, "streamer": stream})
        thread.start()
        pieces = list(stream)
        thread.join()
        assert len(pieces) > 2
        assert "".join(pieces).split() == expected.split()
        assert handle.report().kept == 9  # of the thread's forward, read from here


def joined(one, two, answer):
    """One long prompt of two turns with the first turn's answer between them."""
    long = {name: torch.cat([one[name], two[name]]) for name in one}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        if name in one:
            between = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}.get(
                name, torch.zeros_like(answer)
            )
            long[name] = torch.cat([one[name], between.to(one[name].dtype), two[name]], 1)
    return long


@pytest.mark.parametrize(
    "name", ["llava", "internvl", "mistral3", *(["gemma3-full"] if PRE_ENCODES else []), "aya_vision"]
)
@pytest.mark.parametrize("policy", ["fixed", "divprune"])
def test_two_turns_with_an_image_each_equal_one_long_prompt(name, policy, every_third):
    """Each image was pruned on its own, and the second turn's positions, masks and cache go on from the first's."""
    family = BY_NAME[name]
    model, one, two = family.model(), family.inputs((1,)), family.inputs((1,), seed=11)
    two["pixel_values"] = two["pixel_values"].flip(-1)
    with tokenprune.wrap(model, every_third if policy == "fixed" else tokenprune.DivPrune(keep=0.3)) as handle:
        first = generate(model, one)
        long = joined(one, two, new_tokens(first, one))
        keep = ~reference.visual(long) | reference.newlines(model, long)
        keep[:, : one["input_ids"].shape[1]] |= reference.keep_mask(one, handle.report())
        filled = first.past_key_values.get_seq_length()  # all of the answer but its last token
        turn = {name: long[name] if len(long[name]) == 1 else two[name] for name in long}
        second = generate(model, turn, past_key_values=first.past_key_values)
        report = handle.report()
    for unit in report.units:
        keep[0, unit.slots[unit.indices] + filled] = True
    assert 0 < report.kept < report.total
    expected = reference.logits(model, long, keep, new_tokens(second, long))
    assert (logits(second) - expected).abs().max() < family.tolerance


def steps_by_hand(model, inputs, keep, tokens, cache):
    """[1, steps, V]: the decoder over the kept rows, then one token after the other, with a cache of the caller's."""
    given, length = reference.decoder_inputs(model, inputs), inputs["input_ids"].shape[1]
    at, positions = keep[0].nonzero()[:, 0], given["position_ids"]
    x, position, out = given["inputs_embeds"][:, at], positions[..., at], []
    for step in range(tokens.shape[1]):
        hidden = model.get_decoder()(inputs_embeds=x, position_ids=position, past_key_values=cache).last_hidden_state
        out.append(model.lm_head(hidden)[:, -1])
        x = model.get_input_embeddings()(tokens[:, step : step + 1])
        position = positions[..., -1:] + step + 1
    assert length == positions.shape[-1]
    return torch.stack(out, 1)


@pytest.mark.skipif(not PRE_ENCODES, reason="this transformers has no fp8 cache, and others need further packages")
class TestCaches:
    @pytest.mark.parametrize("backend", ["fp8"])
    @both
    @torch.no_grad()
    def test_quantised_cache(self, family, backend):
        """Its own rounding is coarse, so the reference uses one too: the same numbers to float32 noise."""
        model, inputs = family.model(), family.inputs((1,))
        settings = {"cache_implementation": "quantized", "cache_config": {"backend": backend}}
        with tokenprune.wrap(model, "divprune", keep=0.3) as handle:
            exact = logits(generate(model, inputs))
            pruned, report = generate(model, inputs, **settings), handle.report()
        keep = reference.keep_mask(inputs, report)
        cache = QuantizedCache(backend=backend, config=model.config.get_text_config())
        expected = steps_by_hand(model, inputs, keep, new_tokens(pruned, inputs), cache)
        assert (logits(pruned) - expected).abs().max() < TOLERANCE
        assert (logits(pruned) - exact).abs().max() > 1e-3  # it did quantise
        assert "Pruned" in type(pruned.past_key_values).__name__
        assert pruned.past_key_values.get_seq_length(0) < inputs["input_ids"].shape[1]

    @torch.no_grad()
    def test_quantised_cache_with_several_sequences(self):
        model, inputs = LLAVA.model(), LLAVA.inputs((1,))
        quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
        torch.manual_seed(0)
        with tokenprune.wrap(model, "divprune", keep=0.3) as handle:
            out = generate(model, inputs, num_return_sequences=2, do_sample=True, **quantised)
            keep = reference.keep_mask({"input_ids": inputs["input_ids"].expand(2, -1)}, handle.report())[:1]
        answers = new_tokens(out, inputs)
        assert answers[0].tolist() != answers[1].tolist()
        for row, answer in zip(logits(out), answers, strict=True):
            cache = QuantizedCache(backend="fp8", config=model.config.get_text_config())
            assert (row - steps_by_hand(model, inputs, keep, answer[None], cache)[0]).abs().max() < TOLERANCE


@pytest.mark.filterwarnings("ignore")  # torch's advice to compile it
class TestFlexAttention:
    @pytest.fixture(autouse=True)
    def without_kernels(self, monkeypatch):
        """Its plain implementation, since compiling its kernels needs a compiler that not every machine has."""

        def plain(query, key, value, training=False, **kwargs):
            kwargs.pop("kernel_options", None)
            return flex_attention.flex_attention(query, key, value, **kwargs)

        monkeypatch.setattr(transformers.integrations.flex_attention, "compile_friendly_flex_attention", plain)

    @torch.no_grad()
    def test_masks_that_the_decoder_makes(self):
        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        dense = model(**inputs).logits[:, -1]
        with tokenprune.wrap(model, "divprune", keep=4):
            expected = model(**inputs).logits[:, -1]
            model.set_attn_implementation("flex_attention")
            pruned = model(**inputs).logits[:, -1]
        assert (pruned - expected).abs().max() < TOLERANCE
        assert (pruned - dense).abs().max() > 1e-2

    @torch.no_grad()
    def test_masks_that_are_made_before_the_decoder_are_refused(self):
        family = BY_NAME["gemma3"]
        model, inputs = family.model(), family.inputs((2, 1))
        model.set_attn_implementation("flex_attention")
        with tokenprune.wrap(model, "divprune", keep=4):
            with pytest.raises(errors.UnsupportedModelError, match="BlockMask, which cannot be cut.*'sdpa'"):
                model(**inputs)
            model.set_attn_implementation("sdpa")
            assert model(**inputs).logits.isfinite().all()


class TestContinuousBatching:
    """It hands the ids of several prompts to the model in one row, and never an image, wrapped or not."""

    def serve(self, model, ids):
        """One request after the other, in a cache of a few blocks (the default takes what memory there is)."""
        few = ContinuousBatchingConfig(block_size=16, num_blocks=16, max_batch_tokens=64)
        out = model.generate_batch([ids], continuous_batching_config=few, warmup=False, max_new_tokens=4)
        return next(iter(out.values()))

    def test_text_is_answered_as_by_the_plain_model(self):
        model, ids = LLAVA.model(), list(range(5, 25))
        expected = self.serve(model, ids).generated_tokens
        with tokenprune.wrap(model, "divprune", keep=4):
            assert self.serve(model, ids).generated_tokens == expected

    def test_a_prompt_with_an_image_fails_and_says_why(self):
        """Without this the placeholders would be read as words and the answer made up."""
        model, inputs = LLAVA.model(), LLAVA.inputs()
        with tokenprune.wrap(model, "divprune", keep=4):
            out = self.serve(model, inputs["input_ids"][0].tolist())
            assert not out.generated_tokens
            assert "continuous batching" in out.error
            model.generate(**inputs, max_new_tokens=2)  # usable afterwards

"""Contract 2 in every way a model is run: sampling, beams, assistance, caches, turns, plain forwards, losses.

Greedy `generate` over all families is in test_exactness.py; here every other mode runs on one family of each kind.
"""

import pytest
import torch

import tokenprune
from tests import probes, reference
from tests.families import BY_NAME, IMAGE, PRE_ENCODES, REPEATABLE, VIDEO
from tests.families.base import VOCABULARY
from tests.probes import STEPS, generate, logits, new_tokens
from tokenprune import errors

MROPE = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
ONE_D = ("llava", "llava_onevision", "internvl", "smolvlm", "gemma3", "mistral3")
NO_EMBEDDINGS = ("gemma3",)  # transformers' generate refuses them
# Without pre-encoding, `generate` repeats pixels tile by tile for beams, and Gemma's second turn is off dense as well.
REPEATING = ONE_D if PRE_ENCODES else tuple(name for name in ONE_D if name != "internvl")
LATER_IMAGES = (*(name for name in ONE_D if name != "gemma3"), *(("gemma3-full",) if PRE_ENCODES else ()))
STATEFUL = ("qwen3_5",)  # transformers refuses assistance: candidates do not leave a recurrent state again


@pytest.fixture
def every_third(every_third_somewhere):
    return every_third_somewhere


def families(*names):
    return pytest.mark.parametrize("family", [BY_NAME[name] for name in names], ids=lambda family: family.name)


def case(family, images=REPEATABLE, **kwargs):
    """A model, a left-padded batch for it, and what the policy of these tests leaves of the prompt."""
    model = family.model(**kwargs)
    return model, family.inputs(images), probes.every_third(family, model, images)


def difference(output, model, inputs, keep, **kwargs):
    """Largest difference of the logits of an answer from the reference's."""
    expected = reference.logits(model, inputs, keep, output.sequences[:, -len(output.logits) :], **kwargs)
    return (logits(output) - expected).abs().max()


def rows(model, inputs, keep, module=None):
    """Per sample [n, ...], what a module answers at every position that is left of the prompt; logits by default."""
    seen = []
    watched = reference.text_decoder(model) if module is None else module
    hook = watched.register_forward_hook(lambda module, args, out: seen.append(out))
    reference.logits(model, inputs, keep, torch.zeros(len(keep), 1).long())
    hook.remove()
    seen = seen[-len(keep) :]
    if module is None:
        return [reference.head(model)(out.last_hidden_state)[0] for out in seen]
    return [(out[0] if isinstance(out, tuple) else out)[0] for out in seen]


def spread(values, keep, inputs):
    """[B, L, V], every position that left repeats the last kept one before it; zeros before the first."""
    full = torch.zeros(*keep.shape, values[0].shape[-1])
    for b, row in enumerate(keep & inputs["attention_mask"].bool()):
        last = row.long().cumsum(0) - 1
        full[b, last >= 0] = values[b][last[last >= 0]]
    return full


def joined(first, second):
    """Two prompts of one sample as one, with the images of both."""
    both = {**second, **first}
    for name in first.keys() & second.keys():
        along = first[name].shape == first["input_ids"].shape  # a row per position
        along |= "pixel_attention_mask" in first  # SmolVLM's pixels lie by sample
        both[name] = torch.cat([first[name], second[name]], int(along))
    return both


def two_turns(family):
    """Two prompts with an image each, which differ in text and pixels."""
    first, second = family.inputs((1,)), family.inputs((1,), seed=4)
    return first, {**second, "pixel_values": second["pixel_values"].flip(-1)}


def padded_right(inputs):
    """The batch with the padding on the other side."""
    shift, turned = (inputs["attention_mask"] == 0).sum(1).tolist(), dict(inputs)
    for name, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            turned[name] = torch.stack([row.roll(-n) for row, n in zip(value, shift, strict=True)])
    return turned


def answer(values):
    """The likeliest tokens that are no placeholders."""
    return values.index_fill(-1, torch.tensor([IMAGE, VIDEO]), -torch.inf).argmax(-1).view(len(values), -1)


def own_loop(model, inputs):
    """[B, STEPS, V], by a loop that passes nothing but the next token and the cache."""
    out = model(**inputs, use_cache=True)
    steps = [out.logits[:, -1]]
    for _ in range(STEPS - 1):
        out = model(input_ids=answer(steps[-1]), past_key_values=out.past_key_values)
        steps.append(out.logits[:, -1])
    return torch.stack(steps, 1)


def without(inputs, *names):
    return {name: value for name, value in inputs.items() if name not in names}


class TestGenerate:
    @families(*REPEATING, *MROPE)
    def test_sampling(self, family, every_third):
        model, inputs, keep = case(family)
        torch.manual_seed(0)
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, do_sample=True, num_return_sequences=3)
        tokens = new_tokens(out, inputs)
        assert len(torch.unique(tokens, dim=0)) > 2
        for i in range(3):
            expected = reference.logits(model, inputs, keep, tokens[i::3])
            assert (logits(out)[i::3] - expected).abs().max() < family.tolerance

    @families(*REPEATING, *MROPE)
    def test_beam_search(self, family, every_third):
        """Scores are the reference's log-probabilities of the sequences that were found."""
        model, inputs, keep = case(family)
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, num_beams=4, num_return_sequences=2, length_penalty=0.0)
        tokens = new_tokens(out, inputs)
        for i in range(2):
            expected = reference.logits(model, inputs, keep, tokens[i::2]).log_softmax(-1)
            score = expected.gather(-1, tokens[i::2, :, None]).sum((1, 2))
            assert (out.sequences_scores[i::2] - score).abs().max() < STEPS * family.tolerance

    @families(*ONE_D, *MROPE)
    def test_without_cache(self, family, every_third):
        """Every step is a prefill of its own, so a sliding window counts the unpruned prompt in all of them."""
        model, inputs, keep = case(family)
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, use_cache=False)
        tokens = new_tokens(out, inputs)
        for step in range(STEPS):
            longer = reference.extended(inputs, tokens[:, :step])
            kept = torch.nn.functional.pad(keep, (0, step), value=True)
            expected = reference.logits(model, longer, kept, tokens[:, step : step + 1])
            assert (logits(out)[:, step] - expected[:, 0]).abs().max() < family.tolerance

    @families(*ONE_D[:4], "mistral3", *MROPE)
    def test_static_cache(self, family, every_third):
        model, inputs, keep = case(family, REPEATABLE if every_third.stage == "projector" else (2,))
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, cache_implementation="static")
        assert difference(out, model, inputs, keep) < family.tolerance

    def test_static_cache_of_a_padded_batch_inside(self):
        """Slots of its layers would stand for different tokens."""
        model, inputs, _ = case(BY_NAME["llava"])
        with tokenprune.wrap(model, "fastv", keep=0.5):
            with pytest.raises(errors.UnsupportedModelError, match="static cache.*use the default cache"):
                generate(model, inputs, cache_implementation="static")

    @families("gemma3")
    def test_static_cache_where_masks_are_made_before_the_decoder(self, family, every_third):
        model, inputs, _ = case(family)
        with tokenprune.wrap(model, every_third):
            with pytest.raises(errors.UnsupportedModelError, match="static cache.*use the default cache"):
                generate(model, inputs, cache_implementation="static")

    # Without the window: candidates of the first call belong to the prefill, where it counts the unpruned prompt.
    @families(*(name for name in (*ONE_D, *MROPE, "gemma3-full") if name not in ("gemma3", *STATEFUL)))
    @pytest.mark.parametrize("help", ["lookup", "assistant"])
    def test_assisted(self, family, help, every_third):
        """With a vocabulary of two words candidates are accepted, and in most families some leave the cache again."""
        model, inputs, keep = case(family, (2,))
        given = {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1}
        if help == "assistant":
            given = {"assistant_model": family.model()}  # it reads the images unpruned
            given["assistant_model"].generation_config.num_assistant_tokens = 3
            given["assistant_model"].generation_config.num_assistant_tokens_schedule = "constant"
        words = [token for token in range(VOCABULARY) if token not in (131, 120)]
        calls = []
        with tokenprune.wrap(model, every_third):
            counter = model.register_forward_pre_hook(lambda *args: calls.append(args))
            out = generate(model, inputs, max_new_tokens=12, suppress_tokens=words, **given)
        counter.remove()
        assert len(calls) < 12
        assert difference(out, model, inputs, keep) < family.tolerance

    @pytest.mark.skipif(not PRE_ENCODES, reason="this transformers loses the images in chunked prefill, wrapped or not")
    @families(*ONE_D, *MROPE)
    def test_chunked_prefill(self, family, every_third):
        model, inputs, _ = case(family, (1,))
        with tokenprune.wrap(model, every_third), pytest.raises(errors.UnsupportedModelError, match="chunked prefill"):
            generate(model, inputs, prefill_chunk_size=16)

    @families(*ONE_D, *MROPE)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, family, dtype, every_third):
        """No further from the float32 reference than the reference itself in that dtype."""
        model, inputs, keep = case(family)
        half, halves = family.model(dtype=dtype), family.inputs(REPEATABLE, dtype=dtype)
        with tokenprune.wrap(half, every_third):
            out = generate(half, halves)
        tokens = new_tokens(out, inputs)
        exact, rounded = reference.logits(model, inputs, keep, tokens), reference.logits(half, halves, keep, tokens)
        noise = (rounded.float() - exact).abs().max()
        assert (logits(out) - exact).abs().max() < 2 * noise
        assert noise < (0.3 if family.name not in STATEFUL else 0.5)

    @families(*(name for name in (*ONE_D, *MROPE) if name not in NO_EMBEDDINGS))
    def test_text_embeddings_instead_of_ids(self, family, every_third):
        model, inputs, keep = case(family)
        text = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
        if family.name in ONE_D:  # M-RoPE positions are made from ids, with or without pruning
            del text["input_ids"]
        with tokenprune.wrap(model, every_third):
            out = generate(model, text)
        assert difference(out, model, inputs, keep) < family.tolerance

    @families(*(name for name in (*ONE_D, *MROPE) if name not in NO_EMBEDDINGS))
    def test_embeddings_with_the_images_merged_already(self, family, every_third):
        model, inputs, _ = case(family, (1,))
        merged = reference.decoder_inputs(model, inputs)["inputs_embeds"]
        given = {"inputs_embeds": merged, "attention_mask": inputs["attention_mask"]}
        dense = generate(model, given)
        with tokenprune.wrap(model, every_third), pytest.warns(UserWarning, match="together with pixel_values"):
            assert torch.equal(logits(generate(model, given)), logits(dense))


class TestForward:
    @families(*ONE_D, *MROPE)
    @pytest.mark.parametrize("mask", [True, False])
    @pytest.mark.parametrize("cached", [True, False])
    def test_every_row(self, family, mask, cached, every_third):
        """Logits at all kept positions, visual ones included."""
        model, inputs, keep = case(family, (2,))
        expected = rows(model, inputs, keep)[0]
        given = inputs if mask else without(inputs, "attention_mask")
        with tokenprune.wrap(model, every_third):
            out = model(**given, use_cache=cached).logits[0]
        assert len(out) < keep.shape[1]
        assert (out - expected).abs().max() < family.tolerance

    @families(*ONE_D, *MROPE)
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding(self, family, side, every_third):
        """Rows that are left are right-aligned, with padding on the right, which stays, behind them."""
        model, inputs, keep = case(family)
        if side == "right":
            inputs, keep = padded_right(inputs), padded_right({**inputs, "keep": keep})["keep"]
        given = dict(inputs)
        if family.name in ONE_D:  # M-RoPE positions are made from the mask
            given["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        expected = rows(model, inputs, keep)
        with tokenprune.wrap(model, every_third):
            out = model(**given).logits
        behind = (inputs["attention_mask"].flip(1).cumsum(1) == 0).sum(1).tolist()
        assert any(behind) == (side == "right")
        for b, row in enumerate(expected):
            end = out.shape[1] - behind[b]
            assert (out[b, end - len(row) : end] - row).abs().max() < family.tolerance

    @families(*ONE_D, *MROPE)
    def test_own_loop(self, family, every_third):
        model, inputs, keep = case(family, (2,))
        with tokenprune.wrap(model, every_third):
            steps = own_loop(model, without(inputs, "attention_mask"))
        expected = reference.logits(model, inputs, keep, answer(steps))
        assert (steps - expected).abs().max() < family.tolerance

    @families(*ONE_D, *MROPE)
    def test_own_loop_over_a_padded_batch(self, family, every_third):
        """Masks and positions count the tokens of the prompt, as without pruning."""
        model, inputs, keep = case(family)
        mask, out, steps, ids = inputs["attention_mask"], None, [], without(inputs, "attention_mask")
        with tokenprune.wrap(model, every_third):
            for _ in range(STEPS):
                given = {**ids, "attention_mask": mask}
                if family.name in ONE_D:
                    given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids["input_ids"].shape[1] :]
                out = model(**given, past_key_values=out and out.past_key_values, use_cache=True)
                steps.append(out.logits[:, -1])
                ids, mask = {"input_ids": answer(steps[-1])}, torch.nn.functional.pad(mask, (0, 1), value=1)
        steps = torch.stack(steps, 1)
        expected = reference.logits(model, inputs, keep, answer(steps))
        assert (steps - expected).abs().max() < family.tolerance

    @families(*ONE_D, *MROPE)
    def test_text_embeddings_instead_of_ids(self, family, every_third):
        model, inputs, _ = case(family)
        embeds = {**without(inputs, "input_ids"), "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
        if family.name in MROPE:
            length = inputs["input_ids"].shape[1]
            embeds["position_ids"] = reference.decoder_inputs(model, inputs)["position_ids"][..., :length]
        with tokenprune.wrap(model, every_third):
            assert torch.equal(model(**embeds).logits, model(**inputs).logits)

    @families(*ONE_D, *MROPE)
    def test_hidden_states(self, family, every_third):
        """Short, layer by layer."""
        model, inputs, keep = case(family)
        layers, real = reference.text_decoder(model).layers, inputs["attention_mask"].bool()
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, output_hidden_states=True)
        for number, layer in enumerate(layers[:-1]):
            for b, row in enumerate(rows(model, inputs, keep, layer)):
                assert (out.hidden_states[0][number + 1][b, -len(row) :] - row).abs().max() < 10 * family.tolerance
        last, longest = reference.head(model)(out.hidden_states[0][-1]), int((keep & real).sum(1).max())
        assert (last[:, -1] - out.logits[0]).abs().max() < family.tolerance
        assert [states[-1].shape[1] for states in out.hidden_states] == [longest, *[1] * (STEPS - 1)]

    @families(*ONE_D, *MROPE)
    def test_full_logits(self, family, every_third):
        model, inputs, keep = case(family)
        expected = spread(rows(model, inputs, keep), keep, inputs)
        with tokenprune.wrap(model, every_third, logits="full"):
            out, answers = model(**inputs).logits, generate(model, inputs)
        real = inputs["attention_mask"].bool()
        assert out.shape == expected.shape
        assert (out - expected)[real].abs().max() < family.tolerance
        assert difference(answers, model, inputs, keep) < family.tolerance

    @families(*ONE_D, *MROPE)
    def test_loss(self, family, every_third):
        """With labels logits have the prompt's length, so the loss is that of the rows before each label."""
        model, inputs, keep = case(family)
        labels = inputs["input_ids"].masked_fill(reference.visual(inputs), -100)
        labels[:, 1:][inputs["attention_mask"][:, :-1] == 0] = -100  # padding, and what padding would predict
        labels[:, 0] = -100
        expected = spread(rows(model, inputs, keep), keep, inputs)
        loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        dense = model(**inputs, labels=labels).loss
        with tokenprune.wrap(model, every_third):
            out = model(**inputs, labels=labels)
            assert out.logits.shape[:2] == labels.shape
            assert model(**inputs).logits.shape[1] < labels.shape[1]  # and only then
        assert (out.loss - loss).abs() < family.tolerance
        assert (out.loss - dense).abs() > 10 * family.tolerance


class TestTurns:
    @families(*ONE_D, *MROPE)
    def test_text(self, family, every_third):
        """The cache of the first turn goes on: two more tokens per sample, then STEPS new ones."""
        model, inputs, keep = case(family)
        with tokenprune.wrap(model, every_third):
            first = generate(model, inputs)
            more = torch.randint(5, 140, (2, 2), generator=torch.Generator().manual_seed(1))
            ids = torch.cat([first.sequences, more], 1)
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, STEPS + 2), value=1)
            second = generate(model, {"input_ids": ids, "attention_mask": mask}, past_key_values=first.past_key_values)
        expected = reference.logits(model, inputs, keep, second.sequences[:, inputs["input_ids"].shape[1] :])
        assert (logits(second) - expected[:, -STEPS:]).abs().max() < family.tolerance

    # Gemma without the window, which counts the unpruned prompt within a turn and what is left of earlier ones.
    @families(*LATER_IMAGES)
    @pytest.mark.parametrize("positions", ["original", "compact"])
    def test_a_new_image(self, family, positions, every_third):
        """The reference reads both turns at once. M-RoPE models themselves cannot number a later image."""
        model, (first, second) = family.model(), two_turns(family)
        both = joined(first, second)
        keep = torch.cat([probes.every_third(family, model, (1,))] * 2, 1)
        with tokenprune.wrap(model, every_third, positions=positions) as handle:
            cache = model(**first, use_cache=True).past_key_values
            shared = {name: both[name] for name in both if both[name].shape == both["input_ids"].shape}
            out = generate(model, {**second, **shared}, past_key_values=cache)
            assert len(handle.report().units) == 1  # the image of the first turn is not looked at again
        assert difference(out, model, both, keep, compact=positions == "compact") < family.tolerance

    # The other families with videos read frames as images.
    @families("llava_onevision", *MROPE)
    def test_image_and_video_in_one_prompt(self, family, every_third):
        video = BY_NAME[f"{family.name}-video"]
        model, inputs = family.model(), joined(family.inputs((1,)), video.inputs((1,)))
        keep = torch.cat([probes.every_third(one, model, (1,)) for one in (family, video)], 1)
        with tokenprune.wrap(model, every_third) as handle:
            out = generate(model, inputs)
            assert [unit.kind for unit in handle.report().units] == ["image", "video"]
            assert (model(**inputs).logits[:, -1] - out.logits[0]).abs().max() < family.tolerance
        assert difference(out, model, inputs, keep) < family.tolerance


@families(*REPEATING, "llava_onevision-video", "llava_next_video-video", "video_llava-video")
class TestCompactPositions:
    def test_greedy_and_beams(self, family, every_third):
        model, inputs, keep = case(family)
        with tokenprune.wrap(model, every_third, positions="compact"):
            out = generate(model, inputs)
            beams = generate(model, inputs, num_beams=3, length_penalty=0.0)
        assert difference(out, model, inputs, keep, compact=True) < family.tolerance
        assert difference(out, model, inputs, keep) > 1e-2
        tokens = new_tokens(beams, inputs)
        expected = reference.logits(model, inputs, keep, tokens, compact=True).log_softmax(-1)
        score = expected.gather(-1, tokens[..., None]).sum((1, 2))
        assert (beams.sequences_scores - score).abs().max() < STEPS * family.tolerance

    def test_own_loop(self, family, every_third):
        model, inputs, keep = case(family, (2,))
        with tokenprune.wrap(model, every_third, positions="compact"):
            steps = own_loop(model, without(inputs, "attention_mask"))
        expected = reference.logits(model, inputs, keep, answer(steps), compact=True)
        assert (steps - expected).abs().max() < family.tolerance

"""Contracts 1 and 2: keep-all is the identity, and pruned is what it says, over all policies and families."""

import pytest
import torch

import tokenprune
from tests import reference
from tests.default_policies import POLICIES
from tests.families import FAMILIES, LLAVA, QWEN2_5_VL, REPEATABLE
from tokenprune.ops import average_by_source

STEPS = 4
TOLERANCE = 2e-5  # float32 noise of a 4-layer decoder whose logits spread over +-5; a wrong position costs 0.1 to 4
BATCHES = [(1,), (2, 1), (1, 0, 3)]
family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def generate(model, inputs, **kwargs):
    kwargs = {"max_new_tokens": STEPS, "do_sample": False, **kwargs}
    return model.generate(**inputs, **kwargs, return_dict_in_generate=True, output_logits=True, output_scores=True)


def logits(output):
    return torch.stack(output.logits, 1)


def merged_rows(model, inputs, report):
    """The embedded prompt with every survivor replaced by the mean of the tokens it stands for."""
    x, _ = reference.full_prompt(model, inputs)
    visual = inputs["input_ids"] >= 150
    visual &= inputs["input_ids"] < 152
    for b in range(len(x)):
        place, start = visual[b].nonzero()[:, 0], 0
        for unit in (unit for unit in report.units if unit.sample == b):
            at = place[start : start + unit.total]
            mean, _ = average_by_source(x[b, at][None], unit.source[None], unit.kept)
            x[b, at[unit.indices]] = mean[0]
            start += unit.total
    return x


@family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keep_all_is_bit_identical(family, attention):
    model, inputs = family.model(attention=attention), family.inputs((2, 1))
    dense, plain = generate(model, inputs), model(**inputs).logits
    for name, policy in POLICIES.items():
        with tokenprune.wrap(model, policy(keep=1.0)) as handle:
            assert torch.equal(logits(generate(model, inputs)), logits(dense)), name
            assert torch.equal(model(**inputs).logits, plain), name
            assert handle.report().kept == handle.report().total > 0
    assert torch.equal(logits(generate(model, inputs)), logits(dense))


@family
@pytest.mark.parametrize("images", BATCHES, ids=str)
@pytest.mark.parametrize("name", [name for name in POLICIES if name != "none"])
def test_every_policy_equals_the_manual_computation(family, images, name):
    model, inputs = family.model(), family.inputs(images)
    with tokenprune.wrap(model, POLICIES[name](keep=0.3)) as handle:
        pruned, report = generate(model, inputs), handle.report()
    rows = merged_rows(model, inputs, report) if name == "pool" else None
    keep = reference.keep_mask(inputs, report)
    expected = reference.generate(model, inputs, keep, steps=STEPS, rows=rows)
    assert report.kept < report.total
    assert (logits(pruned) - expected).abs().max() < TOLERANCE
    assert (logits(pruned) - logits(generate(model, inputs))).abs().max() > 1e-2  # dense differs: the test can fail


@family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("images", BATCHES, ids=str)
def test_given_indices(family, attention, images, every_third):
    """The index set comes from the test, not from the report."""
    model, inputs = family.model(attention=attention), family.inputs(images)
    visual = (inputs["input_ids"] >= 150) & (inputs["input_ids"] < 152)
    with tokenprune.wrap(model, every_third):
        pruned = generate(model, inputs)
    expected = reference.generate(model, inputs, ~visual | every_third_mask(family, inputs), steps=STEPS)
    assert (logits(pruned) - expected).abs().max() < TOLERANCE


def every_third_mask(family, inputs):
    """Places 1, 4, 7 ... of every image: [B, L] bool"""
    visual = (inputs["input_ids"] >= 150) & (inputs["input_ids"] < 152)
    lengths = iter(family.pixels(10)[1])
    keep = torch.zeros_like(visual)
    for b in range(len(visual)):
        place = visual[b].nonzero()[:, 0].tolist()
        while place:
            n = next(lengths)
            keep[b, place[:n][1::3]] = True
            place = place[n:]
    return keep


class TestGenerateModes:
    """One family each of 1-D and M-RoPE positions, a left-padded batch with different image counts."""

    @pytest.fixture(params=[LLAVA, QWEN2_5_VL], ids=lambda family: family.name)
    def family(self, request):
        return request.param

    @pytest.fixture
    def model(self, family):
        return family.model()

    @pytest.fixture
    def inputs(self, family):
        return family.inputs(REPEATABLE)

    @pytest.fixture
    def keep(self, family, inputs):
        visual = (inputs["input_ids"] >= 150) & (inputs["input_ids"] < 152)
        return ~visual | every_third_mask(family, inputs)

    def new_tokens(self, output, inputs):
        return output.sequences[:, inputs["input_ids"].shape[1] :]

    def test_sampling(self, model, inputs, keep, every_third):
        torch.manual_seed(0)
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, do_sample=True, num_return_sequences=3)
        tokens = self.new_tokens(out, inputs)
        assert len(torch.unique(tokens, dim=0)) > 2
        for i in range(3):
            expected = reference.generate(model, inputs, keep, steps=STEPS, forced=tokens[i::3])
            assert (logits(out)[i::3] - expected).abs().max() < TOLERANCE

    def test_beam_search(self, model, inputs, keep, every_third):
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, num_beams=4, num_return_sequences=2, length_penalty=0.0)
        tokens = self.new_tokens(out, inputs)
        for i in range(2):
            expected = reference.generate(model, inputs, keep, steps=STEPS, forced=tokens[i::2]).log_softmax(-1)
            score = expected.gather(-1, tokens[i::2, :, None]).sum((1, 2))
            assert (out.sequences_scores[i::2] - score).abs().max() < TOLERANCE

    def test_without_cache(self, model, inputs, keep, every_third):
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, use_cache=False)
        assert (logits(out) - reference.generate(model, inputs, keep, steps=STEPS)).abs().max() < TOLERANCE

    def test_static_cache(self, model, inputs, keep, every_third):
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, cache_implementation="static")
        assert (logits(out) - reference.generate(model, inputs, keep, steps=STEPS)).abs().max() < TOLERANCE

    def test_prompt_lookup(self, family, model, every_third):
        inputs = family.inputs((2,))
        with tokenprune.wrap(model, every_third):
            out = generate(model, inputs, prompt_lookup_num_tokens=2, max_new_tokens=6)
        visual = (inputs["input_ids"] >= 150) & (inputs["input_ids"] < 152)
        expected = reference.generate(model, inputs, ~visual | every_third_mask(family, inputs), steps=6)
        assert self.new_tokens(out, inputs).tolist() == expected.argmax(-1).tolist()

    def test_plain_forward_and_own_loop(self, family, model, every_third):
        inputs = family.inputs((2,))
        visual = (inputs["input_ids"] >= 150) & (inputs["input_ids"] < 152)
        keep = ~visual | every_third_mask(family, inputs)
        x, positions = reference.full_prompt(model, inputs)
        at = keep[0].nonzero()[:, 0]
        expected = reference.logits(model, x[0, at], positions[..., 0, :][..., at])
        with tokenprune.wrap(model, every_third):
            for given in (inputs, {name: value for name, value in inputs.items() if name != "attention_mask"}):
                for cached in (False, True):
                    out = model(**given, use_cache=cached)
                    assert (out.logits[0] - expected).abs().max() < TOLERANCE
            cache, steps = out.past_key_values, [out.logits[:, -1]]
            for _ in range(STEPS - 1):
                out = model(input_ids=steps[-1].argmax(-1, keepdim=True), past_key_values=cache)
                steps.append(out.logits[:, -1])
        expected = reference.generate(model, inputs, keep, steps=STEPS)
        assert (torch.stack(steps, 1) - expected).abs().max() < TOLERANCE

    def test_text_embeddings_instead_of_ids(self, family, model, inputs, keep, every_third):
        text = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
        if family is LLAVA:  # M-RoPE positions cannot be computed from embeddings; transformers needs the ids
            del text["input_ids"]
        with tokenprune.wrap(model, every_third):
            out = generate(model, text)
        assert (logits(out) - reference.generate(model, inputs, keep, steps=STEPS)).abs().max() < TOLERANCE

    def test_second_turn_of_text(self, model, inputs, keep, every_third):
        """The cache of the first turn goes on: two more tokens per sample, then STEPS new ones."""
        with tokenprune.wrap(model, every_third):
            first = generate(model, inputs)
            more = torch.randint(5, 140, (2, 2), generator=torch.Generator().manual_seed(1))
            ids = torch.cat([first.sequences, more], 1)
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, STEPS + 2), value=1)
            second = generate(model, {"input_ids": ids, "attention_mask": mask}, past_key_values=first.past_key_values)
        forced = torch.cat([ids[:, -STEPS - 2 :], second.sequences[:, -STEPS:]], 1)
        expected = reference.generate(model, inputs, keep, steps=2 * STEPS + 2, forced=forced)[:, -STEPS:]
        assert (logits(second) - expected).abs().max() < TOLERANCE

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, family, keep, inputs, every_third, dtype):
        model = family.model(dtype=dtype)
        with tokenprune.wrap(model, every_third):
            out = generate(model, family.inputs(REPEATABLE, dtype=dtype))
        forced = self.new_tokens(out, inputs)
        exact = reference.generate(family.model(), inputs, keep, steps=STEPS, forced=forced)
        rounded = reference.generate(model, family.inputs(REPEATABLE, dtype=dtype), keep, steps=STEPS, forced=forced)
        noise = (rounded - exact).abs().max()  # what the dtype alone does to the reference
        assert (logits(out) - exact).abs().max() < 2 * noise
        assert noise < 0.2


def test_second_turn_with_a_new_image(every_third):
    """Two images, the second one in a second turn on the same cache; positions are 1-D, so no help is needed."""
    model, both = LLAVA.model(), LLAVA.inputs((2,))
    image = (both["input_ids"][0] == 150).nonzero()[:, 0]
    split = int(image[36]) - 1  # one text token before the second image
    keep = (both["input_ids"] != 150) | every_third_mask(LLAVA, both)
    pixels = both["pixel_values"]
    with tokenprune.wrap(model, every_third) as handle:
        first = model(input_ids=both["input_ids"][:, :split], pixel_values=pixels[:1], use_cache=True)
        out = generate(
            model,
            {"input_ids": both["input_ids"], "pixel_values": pixels[1:], "past_key_values": first.past_key_values},
        )
        assert [(unit.kept, unit.total) for unit in handle.report().units] == [(12, 36)]
    expected = reference.generate(model, both, keep, steps=STEPS)
    assert (logits(out) - expected).abs().max() < TOLERANCE


def test_image_and_video_in_one_prompt(every_third):
    model = QWEN2_5_VL.model()
    image, video = FAMILIES[1].inputs((1,)), FAMILIES[2].inputs((1,))
    mixed = {
        name: torch.cat([image[name], video[name]], 1) for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        mixed[name] = {**image, **video}[name]
    keep = torch.cat(
        [
            (image["input_ids"] != 150) | every_third_mask(FAMILIES[1], image),
            (video["input_ids"] != 151) | every_third_mask(FAMILIES[2], video),
        ],
        1,
    )
    expected = reference.generate(model, mixed, keep, steps=STEPS)
    with tokenprune.wrap(model, every_third) as handle:
        assert (logits(generate(model, mixed)) - expected).abs().max() < TOLERANCE
        assert (model(**mixed).logits[:, -1] - expected[:, 0]).abs().max() < TOLERANCE
        assert [unit.kind for unit in handle.report().units] == ["image", "video"]


class TestCompactPositions:
    def test_equals_the_manual_computation(self, every_third):
        model, inputs = LLAVA.model(), LLAVA.inputs(REPEATABLE)
        keep = (inputs["input_ids"] != 150) | every_third_mask(LLAVA, inputs)
        with tokenprune.wrap(model, every_third, positions="compact"):
            out = generate(model, inputs)
            beams = generate(model, inputs, num_beams=3, length_penalty=0.0)
        expected = reference.generate(model, inputs, keep, steps=STEPS, compact=True)
        assert (logits(out) - expected).abs().max() < TOLERANCE
        tokens = beams.sequences[:, inputs["input_ids"].shape[1] :]
        scores = reference.generate(model, inputs, keep, steps=STEPS, forced=tokens, compact=True).log_softmax(-1)
        assert (beams.sequences_scores - scores.gather(-1, tokens[..., None]).sum((1, 2))).abs().max() < TOLERANCE
        original = reference.generate(model, inputs, keep, steps=STEPS)
        assert (expected - original).abs().max() > 1e-2

    def test_second_turn_with_a_new_image(self, every_third):
        model, both = LLAVA.model(), LLAVA.inputs((2,))
        split = int((both["input_ids"][0] == 150).nonzero()[36, 0]) - 1
        keep = (both["input_ids"] != 150) | every_third_mask(LLAVA, both)
        pixels = both["pixel_values"]
        with tokenprune.wrap(model, every_third, positions="compact"):
            first = model(input_ids=both["input_ids"][:, :split], pixel_values=pixels[:1], use_cache=True)
            out = generate(
                model,
                {"input_ids": both["input_ids"], "pixel_values": pixels[1:], "past_key_values": first.past_key_values},
            )
        expected = reference.generate(model, both, keep, steps=STEPS, compact=True)
        assert (logits(out) - expected).abs().max() < TOLERANCE


def test_composed_policies_equal_their_composition():
    """Pool to 18 tokens, then every third of these: merged rows, and positions of the places they were merged into."""
    model, inputs = LLAVA.model(), LLAVA.inputs((1, 1))
    with tokenprune.wrap(model, [tokenprune.Pool(keep=18), tokenprune.DivPrune(keep=6)]) as handle:
        out, report = generate(model, inputs), handle.report()
    assert [unit.kept for unit in report.units] == [6, 6]
    assert all(0 < int((unit.source >= 0).sum()) < unit.total for unit in report.units)
    rows = merged_rows(model, inputs, report)
    expected = reference.generate(model, inputs, reference.keep_mask(inputs, report), steps=STEPS, rows=rows)
    assert (logits(out) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", [LLAVA, QWEN2_5_VL], ids=lambda family: family.name)
def test_compiled_forward(family, every_third):
    """torch.compile works when the model is wrapped first; code compiled before is discarded, not used silently."""
    model, inputs = family.model(), family.inputs((2, 1))
    dense = torch.compile(model.forward, backend="eager")(**inputs).logits[:, -1]
    visual = (inputs["input_ids"] >= 150) & (inputs["input_ids"] < 152)
    expected = reference.generate(model, inputs, ~visual | every_third_mask(family, inputs), steps=1)[:, 0]
    forward = torch.compile(model.forward, backend="eager")
    with tokenprune.wrap(model, every_third):
        assert (forward(**inputs).logits[:, -1] - expected).abs().max() < TOLERANCE
    assert (forward(**inputs).logits[:, -1] - dense).abs().max() < TOLERANCE

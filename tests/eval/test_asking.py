"""Ready-made encodings change nothing: neither the answers nor what a policy picks."""

from dataclasses import dataclass, replace

import pytest
import torch

from tokenprune import CDPruner, ClipRelevance, DivPrune, Pool, Random, Uniform, get_policy, wrap
from tokenprune.eval import asking, shapes
from tokenprune.eval.asking import Pruned, Resized, Way, encoded, repeated, way


@dataclass
class Model:
    model: object
    processor: object

    def ways(self, policy):
        return way(self.model, self.processor, policy)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return Model(*shapes.load(folder=tiny_checkpoint))


@pytest.fixture(scope="module")
def batches(tiny):
    """60 questions about 30 pictures."""
    samples = [one for one in shapes.held_out(30) for _ in range(2)]
    samples[1] = replace(samples[1], question=samples[4].question)
    with torch.inference_mode():
        return list(encoded(tiny.model, tiny.processor, samples))


def test_batches_hold_every_sample_once_and_every_picture_once(batches):
    assert [len(one.samples) for one in batches] == [50, 10]
    assert [len(one.pixels) for one in batches] == [25, 5]
    assert batches[1].owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [len(one.features) for one in batches] == [50, 10]
    for batch in batches:
        for sample, picture in zip(batch.samples, batch.owner.tolist(), strict=True):
            assert batch.pictures[picture] is sample.image


@torch.inference_mode()
@pytest.mark.parametrize("policy", [None, DivPrune(), DivPrune(features="pre_merger"), Random(), CDPruner()], ids=repr)
def test_encoded_pictures_are_read_as_pixels_are(tiny, batches, policy):
    batch, ways, seen = batches[1], tiny.ways(policy), []
    for arguments in (ways.given, ways.encoded):
        with ways.at(0.05, batch):
            given = arguments(batch, 0.05)
            logits = tiny.model(**given, logits_to_keep=1).logits
            kept = None if policy is None else [unit.indices for unit in ways.report().units]
        seen.append((logits, kept))
    assert ("pixel_values" in given) != shapes.takes_features(tiny.model)
    torch.testing.assert_close(seen[0][0], seen[1][0], atol=1e-5, rtol=1e-5)
    if policy is not None:
        assert torch.equal(torch.stack(seen[0][1]), torch.stack(seen[1][1]))


@torch.inference_mode()
def test_what_a_policy_wants_of_the_tower_is_noted_once_for_all_budgets(tiny, batches, monkeypatch):
    calls, method = [], type(tiny.model.model).get_image_features

    def spied(self, pixel_values, *args, **kwargs):
        calls.append(len(pixel_values))
        return method(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(type(tiny.model.model), "get_image_features", spied)
    for policy, expected in ((DivPrune(), []), (DivPrune(features="pre_merger"), [25, 5])):
        ways = tiny.ways(policy)
        for batch in batches:
            for keep in (0.5, 0.05):
                with ways.at(keep, batch):
                    ways.words(ways.encoded(batch, keep))
                    assert ways.kept(batch) == (128 if keep == 0.5 else 13)
        assert calls == expected


@torch.inference_mode()
@pytest.mark.parametrize("policy", [DivPrune(features="pre_merger"), Pool(), get_policy("fastervlm")()], ids=repr)
def test_a_policy_without_text_is_asked_once_per_picture_and_answers_every_question(tiny, batches, policy, monkeypatch):
    units, select, batch = [], type(policy).select, batches[1]

    def spied(self, tokens, k):
        units.append(tokens.shape[0])
        return select(self, tokens, k)

    monkeypatch.setattr(type(policy), "select", spied)
    ways = tiny.ways(policy)
    with ways.at(0.05, batch):
        once, short = ways.words(ways.encoded(batch, 0.05)), ways.report()
    with wrap(tiny.model, policy, keep=0.05) as handle:
        each, whole = ways.words(ways.given(batch, 0.05)), handle.report()
    assert units == [5, 10]
    assert torch.equal(once, each)
    for a, b in zip(short.units, whole.units, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.source, b.source)


def test_policies_that_read_the_prompt_are_asked_for_every_question(tiny, batches):
    for policy in (CDPruner(), Random()):
        with (ways := tiny.ways(policy)).at(0.05, batches[1]):
            assert type(ways._handle.policies[0]) is type(policy)


@torch.inference_mode()
def test_a_repeated_encoding_repeats_its_note(tiny, batches):
    policy = DivPrune(features="pre_merger")
    with wrap(tiny.model, policy, keep=0.5):
        output = tiny.model.get_image_features(pixel_values=batches[1].pixels)
    note = repeated(output, torch.tensor([4, 0, 4]))._tokenprune
    assert torch.equal(note.entered[0], output._tokenprune.entered[0][[4, 0, 4]])
    assert note.rows == [256] * 3
    assert note.pixels.shape == (3, 3, 128, 128)
    assert output._tokenprune.rows == [256] * 5


@torch.inference_mode()
def test_relevance_gets_the_question_of_every_sample(tiny, batches, monkeypatch):
    seen = []

    @dataclass(kw_only=True)
    class Spy(ClipRelevance):
        def __call__(self, tokens):
            seen.append(tokens.instruction)
            return torch.rand(tokens.shape)

    ways = tiny.ways(CDPruner(relevance=Spy(clip=None, tokenizer=None)))
    with ways.at(0.05, batches[1]):
        ways.words(ways.encoded(batches[1], 0.05))
    assert seen == [[one.question.text for one in batches[1].samples]]


@torch.inference_mode()
def test_resized_pictures_have_fewer_tokens_and_leave_the_processor_as_it_was(tiny, batches):
    size = tiny.processor.image_processor.size
    ways = tiny.ways(get_policy("resize")(multiple=8))
    dense = Way(tiny.model, tiny.processor)
    before = dense.words(dense.encoded(batches[1], 1.0))
    for keep, side in ((0.5, (11, 11)), (0.05, (3, 4))):
        with ways.at(keep, batches[1]):
            given = ways.given(batches[1], keep)
            assert sorted(given["pixel_values"].shape[-2:]) == [8 * one for one in side]
            places = (given["input_ids"] == tiny.model.config.image_token_id).sum(1)
            assert places.tolist() == [side[0] * side[1]] * 10
            assert ways.kept(batches[1]) == side[0] * side[1]
            assert torch.equal(ways.words(given), ways.words(ways.encoded(batches[1], keep)))
    assert tiny.processor.image_processor.size == size
    assert torch.equal(dense.words(dense.encoded(batches[1], 1.0)), before)


def test_the_way_fits_the_stage(tiny):
    assert type(tiny.ways(None)) is Way
    assert type(tiny.ways(Uniform())) is Pruned
    assert type(tiny.ways(get_policy("resize")(multiple=8))) is Resized


@torch.inference_mode()
def test_the_short_cut_is_compared_with_generate(tiny, batches, monkeypatch):
    asking.check_against_generate(tiny.model, tiny.processor, batches[1])
    monkeypatch.setattr(Way, "words", lambda self, arguments: torch.zeros(10, dtype=torch.long))
    with pytest.raises(RuntimeError, match="not the first word"):
        asking.check_against_generate(tiny.model, tiny.processor, batches[1])

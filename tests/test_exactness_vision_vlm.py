"""Contracts 1 and 2 inside the vision towers of language models: what they read is what the tower made by hand."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

import tokenprune
from tests import reference, vision_reference
from tests.families import BY_NAME
from tests.families.base import noise
from tests.probes import generate, logits, new_tokens, protected, same, snapshot
from tests.test_exactness_layers import answered, left_and_merged  # noqa: F401
from tests.vision_probes import TOLERANCE, Shuffled
from tokenprune import DivPrune, EViT, FastV, RandomBlocks, ToMe
from tokenprune.errors import UnsupportedPolicyError

BATCHES = [(1,), (2, 1), (1, 0, 3)]


@dataclass(frozen=True)
class Case:
    """A family whose tower can lose tokens.

    Attributes:
        blocks: where they are.
        depth: how many are read.
        prefix: class tokens.
        full: of a packed tower, blocks where whole images attend to themselves, None if all do.
        packed: images lie behind each other in one row.
        short: a visual token is made of one patch, so that the language model can read fewer.
    """

    name: str
    blocks: str
    depth: int = 3
    prefix: int = 0
    full: tuple[int, ...] | None = None
    packed: bool = False
    short: bool = False

    @property
    def family(self) -> Any:
        return BY_NAME[self.name]

    @contextmanager
    def by_hand(self, model: Any, policy: Any, inputs: dict[str, Any]):
        """The tower's states, call by call."""
        blocks = model.model.get_submodule(self.blocks)
        if not self.packed:
            with vision_reference.reducing(blocks, policy, prefix=self.prefix, depth=self.depth) as calls:
                yield calls
            return
        grids = next(value for name, value in inputs.items() if name.endswith("grid_thw"))
        how = {"full": None if self.full is None else list(self.full), "grids": grids, "depth": self.depth}
        with vision_reference.reducing_packed(blocks, policy, **how) as calls:
            yield calls

    def left(self, model: Any, policy: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """[B, L] bool: positions of the tokens left, or the first of those that a token carries which has no position.

        That is where padding of a picture is cut out behind the tower. Found by what changes with which patch.
        """
        with self.by_hand(model, policy, inputs) as calls:
            reference.decoder_inputs(model, inputs)

        def read(rows: Callable[[vision_reference.State, torch.Tensor], torch.Tensor]) -> torch.Tensor:
            following = iter(calls)

            def answers(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
                states = next(following)
                return [rows(states[self.depth - 1], noise(*hidden.shape))] * len(states)

            with vision_reference.stubbed(model.model.get_submodule(self.blocks), answers):
                return reference.decoder_inputs(model, inputs)["inputs_embeds"]

        def gone(state: vision_reference.State) -> torch.Tensor:
            return torch.ones(state.source.shape).scatter(1, state.places, 0.0)[..., None]

        steady = read(lambda state, other: state.restored())
        left = (steady == read(lambda state, other: state.restored() + gone(state) * other)).all(-1)
        carried = (steady == read(lambda state, other: state.restored() + (state.source < 0)[..., None] * other)).all(
            -1
        )
        for b, at in (carried & ~left).nonzero().tolist():
            alike = (steady[b, left[b]] - steady[b, at]).abs().amax(-1) < TOLERANCE
            left[b, at] = not alike.any()
        return left


HF = "vision_tower.encoder.layers"
QWEN = {"blocks": "visual.blocks", "packed": True}
CASES = [
    Case("llava", HF, depth=2, prefix=1, short=True),
    Case("vipllava", HF, prefix=1, short=True),
    Case("llava_onevision", HF, short=True),
    Case("llava_onevision-video", HF),
    Case("llava_next", HF, depth=2, prefix=1, short=True),
    Case("llava_next_video-video", HF, depth=2, prefix=1),
    Case("internvl", "vision_tower.encoder.layer", prefix=1),
    Case("internvl-video", "vision_tower.encoder.layer", prefix=1),
    Case("qwen2_vl", **QWEN),
    Case("qwen2_vl-video", **QWEN),
    Case("qwen2_5_vl", full=(2,), **QWEN),
    Case("qwen2_5_vl-video", full=(2,), **QWEN),
    Case("qwen3_vl", depth=4, **QWEN),
    Case("qwen3_vl-video", depth=4, **QWEN),
    Case("gemma3", HF),
    Case("paligemma", HF, short=True),
    Case("video_llava", "image_tower.encoder.layers", depth=2, prefix=1, short=True),
    Case("video_llava-video", "video_tower.encoder.layers", depth=2, prefix=1, short=True),
    Case("janus", "vision_model.encoder.layers", short=True),
    Case("deepseek_vl", "vision_model.encoder.layers", short=True),
    Case("aya_vision", HF),
    Case("cohere2_vision", HF),
    Case("idefics3", "vision_model.encoder.layers"),
    Case("smolvlm", "vision_model.encoder.layers"),
    Case("glm4v", **QWEN),
]
CASES = [case for case in CASES if case.name in BY_NAME]
SHORT = [case for case in CASES if case.short]
SEVERAL = [case for case in CASES if case.name in ("llava", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl")]
DROPPING: dict[str, Callable[[], Any]] = {
    "evit": lambda: EViT(keep_rate=0.6),
    "random": lambda: RandomBlocks(keep=0.5),
    "shuffled": lambda: Shuffled(keep=0.5),
}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
short_cases = pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def flat(given):
    """All tensors in what the decoder was given that are not counts."""
    if isinstance(given, torch.Tensor):
        return [given] if given.is_floating_point() else []
    if isinstance(given, dict):
        given = [value for name, value in given.items() if name != "past_key_values"]
    return [one for value in given for one in flat(value)] if isinstance(given, (list, tuple)) else []


def close(found, expected):
    assert [one.shape for one in found] == [one.shape for one in expected]
    return all(torch.allclose(a, b, rtol=0, atol=TOLERANCE) for a, b in zip(found, expected, strict=True))


def encode(model, family, inputs):
    """What the projector makes of the images."""
    video = "pixel_values_videos" in inputs
    names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_sizes", "image_grid_thw")
    more = ("pixel_attention_mask", "batch_num_images")
    method = model.model.get_video_features if video else model.model.get_image_features
    out = method(**{name: inputs[name] for name in (*names, *more) if name in inputs})
    return flat([out.pooler_output, getattr(out, "deepstack_features", None)])


@every_case
def test_the_reference_alone_is_the_model(case):
    model, inputs = case.family.model(), case.family.inputs((2, 1))
    dense = model(**inputs).logits
    with case.by_hand(model, None, inputs) as calls:
        assert (model(**inputs).logits - dense).abs().max() < case.family.tolerance
    assert len(calls) == 1


@every_case
@pytest.mark.parametrize(("images", "r"), [((1,), 2), ((2, 1), [0, 0, 5]), ((1, 0, 3), 2)], ids=str)
def test_restored(case, images, r, record_property):
    family = case.family
    r = r if isinstance(r, int) else [0] * (len(case.full or range(case.depth)) - 1) + [5]
    model, inputs, policy = family.model(), family.inputs(images), ToMe(r=r)
    dense = reference.decoder_inputs(model, inputs)
    with tokenprune.wrap(model, policy, restore=True) as handle:
        features = encode(model, family, inputs)
        given = reference.decoder_inputs(model, inputs)
        pruned, report = generate(model, inputs), handle.report()
    with case.by_hand(model, policy, inputs) as calls:
        assert close(features, encode(model, family, inputs))
        assert close(flat(given), flat(reference.decoder_inputs(model, inputs)))
        everything = torch.ones_like(inputs["input_ids"]).bool()
        expected = reference.logits(model, inputs, everything, new_tokens(pruned, inputs))
    assert given["inputs_embeds"].shape == dense["inputs_embeds"].shape
    assert (given["inputs_embeds"] - dense["inputs_embeds"]).abs().max() > 1e-2
    off = float((logits(pruned) - expected).abs().max())
    record_property("difference", off)
    assert off < family.tolerance
    check_towers(case, report, calls[-1])
    assert report.kept == report.total


def check_towers(case, report, call):
    """Every image in the report: what is left of it, and who carries whom."""
    images = [one[case.depth - 1] for one in call] if case.packed else [call[case.depth - 1]]
    found = iter(report.towers)
    for state in images:
        for g in range(len(state.places)):
            tower, places = next(found), (state.places[g, case.prefix :] - case.prefix).tolist()
            carriers = [int(state.places[g, to]) - case.prefix if to >= 0 else -1 for to in state.source[g]]
            assert tower.total == state.source.shape[1] - case.prefix
            assert tower.indices.tolist() == sorted(places)
            assert tower.kept == len(places) < tower.total
            own = [-1 if to < 0 else int(tower.indices[to]) for to in tower.source]
            assert own == carriers[case.prefix :]
    assert next(found, None) is None
    assert "tower" in str(report)


@short_cases
@pytest.mark.parametrize("images", BATCHES, ids=str)
def test_handed_on_shortened(case, images, record_property):
    family, policy = case.family, ToMe(r=2)
    model, inputs = family.model(), family.inputs(images)
    keep = case.left(model, policy, inputs)
    with tokenprune.wrap(model, policy, restore=False) as handle:
        pruned, report = generate(model, inputs), handle.report()
    with case.by_hand(model, policy, inputs) as calls:
        expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs))
    off = float((logits(pruned) - expected).abs().max())
    record_property("difference", off)
    assert off < family.tolerance
    check_towers(case, report, calls[0])
    mask = inputs["attention_mask"].bool()
    assert [lengths[1] for lengths in report.lengths] == (keep & mask).sum(1).tolist()
    assert torch.equal(reference.keep_mask(inputs, report, protected(family, model, images)) & mask, keep & mask)
    assert 0 < report.kept < report.total


@every_case
def test_towers_that_merge_are_restored_by_default(case):
    """Where tokens are made of several patches, nothing else can be asked for."""
    family, policy = case.family, ToMe(r=2)
    model, inputs = family.model(), family.inputs((2, 1))
    before = logits(generate(model, inputs))
    with tokenprune.wrap(model, policy, restore=True):
        restored = logits(generate(model, inputs))
    with tokenprune.wrap(model, policy) as handle:
        assert torch.equal(logits(generate(model, inputs)), restored)
        assert handle.report().kept == handle.report().total
    if not case.short:
        with pytest.raises(UnsupportedPolicyError, match="restore=False") as caught:
            with tokenprune.wrap(model, policy, restore=False):
                model(**inputs)
        assert str(caught.value).endswith(".")
    assert torch.equal(logits(generate(model, inputs)), before)


@short_cases
@pytest.mark.parametrize("images", BATCHES, ids=str)
@pytest.mark.parametrize("name", DROPPING)
def test_dropped(case, images, name):
    family, policy = case.family, DROPPING[name]()
    model, inputs = family.model(), family.inputs(images)
    if name == "evit" and not case.prefix:
        with pytest.raises(UnsupportedPolicyError, match="class token"):
            tokenprune.wrap(model, policy)
        return
    keep = case.left(model, policy, inputs)
    with tokenprune.wrap(model, policy) as handle:
        pruned, report = generate(model, inputs), handle.report()
    with case.by_hand(model, policy, inputs) as calls:
        expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs))
    assert float((logits(pruned) - expected).abs().max()) < family.tolerance
    check_towers(case, report, calls[0])
    assert report.kept < report.total


@every_case
@pytest.mark.parametrize("restore", [None, True])
def test_what_drops_needs_tokens_of_one_patch(case, restore):
    if case.short and restore is None:
        return
    model, inputs = case.family.model(), case.family.inputs()
    dense = model(**inputs).logits
    with pytest.raises(UnsupportedPolicyError, match="random-blocks") as caught:
        with tokenprune.wrap(model, RandomBlocks(keep=0.5), restore=restore):
            model(**inputs)
    assert str(caught.value).endswith(".")
    assert torch.equal(model(**inputs).logits, dense)


@pytest.mark.parametrize(
    ("case", "restore"),
    [(case, restore) for case in SEVERAL for restore in (True, False) if case.short or restore],
    ids=lambda value: getattr(value, "name", "restored" if value else "handed-on"),
)
def test_composed(case, restore, answered):  # noqa: F811
    """Merged in the tower, chosen in front of the language model, dropped inside of it."""
    family, policy, front = case.family, ToMe(r=2), DivPrune(keep=8)
    model, inputs = family.model(), family.inputs((2, 1))
    short = not restore
    left = case.left(model, policy, inputs) if short else torch.ones_like(inputs["input_ids"]).bool()
    with tokenprune.wrap(model, [policy, front, FastV(layer=2, keep=4)], restore=restore) as handle:
        pruned, report = generate(model, inputs), handle.report()
    assert report.stage == "vision + projector + layer"
    inside, _ = left_and_merged(inputs, answered)
    with tokenprune.wrap(model, [policy, front], restore=restore) as handle:
        model(**inputs)
        only = handle.report()
    apart = protected(family, model, (2, 1))
    keep = reference.keep_mask(inputs, only, apart)
    assert (keep <= left | apart).all()
    assert [unit.kept for unit in only.units] == [8] * len(only.units)
    assert [unit.kept for unit in report.units] == [4] * len(only.units)
    inside = {layer: kept & keep for layer, kept in inside.items()}
    with case.by_hand(model, policy, inputs):
        expected = reference.logits(model, inputs, keep, new_tokens(pruned, inputs), inside=inside)
    assert float((logits(pruned) - expected).abs().max()) < family.tolerance


@every_case
def test_keep_all_is_bit_identical(case):
    family = case.family
    model, inputs = family.model(), family.inputs((2, 1))
    dense = generate(model, inputs)
    before = snapshot(model)
    for policy in (ToMe(r=0), ToMe(keep=1.0)):
        for restore in (None, True):
            with tokenprune.wrap(model, policy, restore=restore) as handle:
                assert torch.equal(logits(generate(model, inputs)), logits(dense))
                assert handle.report().kept == handle.report().total > 0
    with tokenprune.wrap(model, ToMe(r=2)) as handle:
        assert not torch.equal(logits(generate(model, inputs)), logits(dense))
        handle.enabled = False
        assert torch.equal(logits(generate(model, inputs)), logits(dense))
    assert same(before, snapshot(model))
    assert torch.equal(logits(generate(model, inputs)), logits(dense))


def _deeper():
    config = BY_NAME["qwen2_5_vl"].build().config
    config.vision_config.fullatt_block_indexes, config.vision_config.depth = [1, 3], 5
    return Qwen2_5_VLForConditionalGeneration(config)


def test_windows_that_lose_all_their_tokens():
    """Behind a block of whole images, those of a window can all merge into others."""
    family, policy = replace(BY_NAME["qwen2_5_vl"], build=_deeper), ToMe(keep=5, stride=12)
    model, inputs = family.model(), family.inputs((2, 1))
    deeper = Case("qwen2_5_vl", "visual.blocks", depth=5, full=(1, 3), packed=True)
    with tokenprune.wrap(model, policy):
        found = encode(model, family, inputs)
    with deeper.by_hand(model, policy, inputs) as calls:
        assert close(found, encode(model, family, inputs))
    windows = [len((states[-1].places // 16).unique()) for states in calls[0]]  # of 4 x 4 patches, behind each other
    assert all(left < states[-1].source.shape[1] // 16 for left, states in zip(windows, calls[0], strict=True))

"""Units and budgets on real layouts: crops, frames, whole images and prompts, and what is never counted."""

from dataclasses import dataclass

import pytest
import torch

import tokenprune
from tests import probes, reference
from tests.families import BY_NAME, FAMILIES
from tests.probes import generate, logits, new_tokens
from tokenprune import CDPruner
from tokenprune.budget import Budget
from tokenprune.errors import InvalidArgumentError, UnsupportedPolicyError


def units(name, images=(2, 1), **budget):
    """(kind, kept, total) of every unit of a pruned prefill, by sample."""
    family = BY_NAME[name]
    model = family.model()
    with tokenprune.wrap(model, "divprune", **budget) as handle:
        model.generate(**family.inputs(images), max_new_tokens=1)
    samples = [[] for _ in images]
    for unit in handle.report().units:
        samples[unit.sample].append((unit.kind, unit.kept, unit.total))
    return samples


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_units_cover_every_patch_once(family):
    """Whatever the unit: no patch is missed or counted twice, none is a newline, and shares are kept by unit."""
    model, images = family.model(), (2, 1)
    inputs = family.inputs(images)
    patches = reference.visual(inputs) & ~probes.protected(family, model, images)
    for per in ("image", "crop", "frame", "prompt"):
        with tokenprune.wrap(model, "uniform", keep=0.5, per=per) as handle:
            if (family.name, per) == ("molmo2-video", "frame"):
                with pytest.raises(UnsupportedPolicyError, match="needs the frames"):
                    model(**inputs)
                continue
            model(**inputs)
        counted = torch.zeros_like(inputs["input_ids"])
        for unit in handle.report().units:
            counted[unit.sample, unit.slots] += 1
            assert unit.kept == round(0.5 * unit.total), per
            assert unit.grid is None or torch.tensor(unit.grid).prod() == unit.total, per
        assert torch.equal(counted, patches.long()), per


@pytest.mark.parametrize(
    ("name", "per", "expected"),
    [
        ("llava_next", "crop", [[16, 8, 8, 8, 8, 16, 8, 8], [16, 8, 8, 8, 8]]),
        ("internvl", "image", [[48, 16], [48]]),
        ("internvl", "crop", [[16] * 4, [16] * 3]),
        ("smolvlm", "image", [[48, 16], [48]]),
        ("smolvlm", "crop", [[16] * 4, [16] * 3]),
        ("llama4", "crop", [[16] * 4, [16] * 3]),
        ("qwen3_vl-video", "image", [[24, 48], [24]]),
        ("qwen3_vl-video", "frame", [[8, 8, 8, 16, 16, 16], [8, 8, 8]]),
        ("llava_onevision-video", "frame", [[4] * 12, [4] * 6]),
        ("video_llava-video", "frame", [[16] * 6, [16] * 3]),
        ("video_llama_3-video", "frame", [[8, 7, 6, 16, 13, 10], [8, 7, 6]]),  # rows that the model dropped itself
        ("qwen3_vl", "prompt", [[60], [24]]),
    ],
)
def test_totals(name, per, expected):
    found = [[total for _, _, total in sample] for sample in units(name, keep=0.25, per=per)]
    assert found == expected


class TestOf:
    """`of`: one budget for a whole image or prompt, split over its units by size."""

    def test_crops_of_an_image(self):
        for sample, count in zip(units("internvl", keep=24, per="crop", of="image"), [(3, 1), (3,)], strict=True):
            kept = [k for _, k, _ in sample]
            for tiles in count:
                own, kept = kept[:tiles], kept[tiles:]
                assert own == ([8, 8, 8] if tiles == 3 else [16])  # an image smaller than its budget stays whole

    def test_images_of_a_prompt(self):
        assert units("qwen3_vl", keep=30, per="image", of="prompt") == [
            [("image", 12, 24), ("image", 18, 36)],
            [("image", 24, 24)],
        ]

    @pytest.mark.parametrize(
        ("keep", "sizes", "expected"),
        [
            (10, [10, 10, 20], [3, 2, 5]),
            (3, [1, 1, 98], [1, 1, 1]),
            (2, [10, 10, 10], [1, 1, 0]),  # fewer tokens than units
            (0.5, [3, 3], [2, 1]),
            (100, [4, 5], [4, 5]),
            (5, [1, 100], [1, 4]),
        ],
    )
    def test_split(self, keep, sizes, expected):
        assert Budget(keep, "crop", of="image").split(sizes) == expected

    def test_every_split_is_exact_and_fits(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            sizes = torch.randint(1, 60, (int(torch.randint(1, 9, (1,), generator=generator)),), generator=generator)
            keep = int(torch.randint(1, 200, (1,), generator=generator))
            shares = Budget(keep, "crop", of="prompt").split(sizes.tolist())
            assert sum(shares) == min(keep, int(sizes.sum()))
            assert all(0 <= share <= size for share, size in zip(shares, sizes.tolist(), strict=True))
            if keep >= len(sizes):
                assert min(shares) >= 1

    @pytest.mark.parametrize(("per", "of"), [("image", "image"), ("prompt", "image"), ("crop", "frame")])
    def test_units_that_do_not_nest(self, per, of):
        with pytest.raises(InvalidArgumentError, match="of="):
            tokenprune.DivPrune(keep=4, per=per, of=of)

    def test_a_unit_may_lose_everything(self, every_third):
        """Two tokens for three tiles: the third tile goes as a whole, and the answer is that of the shorter prompt."""
        family = BY_NAME["internvl"]
        model, inputs = family.model(), family.inputs((1,))
        with tokenprune.wrap(model, "divprune", keep=2, per="crop", of="image") as handle:
            out, report = generate(model, inputs), handle.report()
        assert [unit.kept for unit in report.units] == [1, 1, 0]
        expected = reference.logits(model, inputs, reference.keep_mask(inputs, report), new_tokens(out, inputs))
        assert (logits(out) - expected).abs().max() < family.tolerance


class TestSeparators:
    """Newline and row-break tokens stay, unless asked to leave with the last token of their line."""

    class Top(tokenprune.ProjectorPolicy):
        """The first tokens of every unit."""

        def select(self, tokens, k):
            return tokenprune.Selection.subset(torch.arange(k).expand(len(tokens.features), k))

    # family, tokens kept of the only image, separators that are left of all
    CASES = [("llava_next", 18, (1, 4)), ("hunyuan_vl", 8, (4, 6)), ("mistral3", 7, (3, 4))]

    @pytest.mark.parametrize(("name", "keep", "left"), CASES, ids=[case[0] for case in CASES])
    def test_empty_lines(self, name, keep, left):
        family = BY_NAME[name]
        model, inputs = family.model(), family.inputs((1,))
        lengths = []
        for drop in (False, True):
            with tokenprune.wrap(model, self.Top(keep=keep), drop_empty_rows=drop) as handle:
                out, report = generate(model, inputs), handle.report()
            lengths.append(report.lengths[0][1])
        assert lengths[0] - lengths[1] == left[1] - left[0]
        mask = reference.keep_mask(inputs, report, probes.protected(family, model, (1,)))
        mask &= ~dropped_separators(family, model, inputs, report)
        expected = reference.logits(model, inputs, mask, new_tokens(out, inputs))
        assert (logits(out) - expected).abs().max() < family.tolerance


def dropped_separators(family, model, inputs, report):
    """[B, L] bool: separators between the last kept token of an image and its end, whose line is empty."""
    (unit,) = report.units
    apart = probes.protected(family, model, (1,)) | (inputs["input_ids"] == 154)
    empty = torch.zeros_like(apart)
    place, last = int(unit.slots[unit.indices][-1]), int(unit.slots[-1])
    own = True  # the separator of the last line that still has a token
    for slot in range(place + 1, last + 2):
        if apart[0, slot]:
            empty[0, slot] = not own
            own = False
    return empty


def test_relevance_is_scaled_over_all_crops_of_an_image_whatever_their_size():
    """The base view and the tiles of an any-resolution image are asked in calls of their own."""
    family, seen = BY_NAME["llava_next"], []

    @dataclass(kw_only=True)
    class Noted(CDPruner):
        def select(self, tokens, k):
            chosen = super().select(tokens, k)
            seen.append((tokens.image, tokens.rating, chosen.scores))
            return chosen

    policy = Noted(keep=3, relevance=lambda tokens: tokens.features.float().sum(-1))
    model = family.model()
    with torch.no_grad(), tokenprune.wrap(model, policy, per="crop"):
        model(**family.inputs((2, 1)))
    sizes = {rating.shape[1] for _, rating, _ in seen}
    assert len(sizes) > 1
    for image in torch.cat([one for one, _, _ in seen]).unique():
        parts = [(q[at == image], r[at == image]) for at, q, r in seen]
        q, r = (torch.cat([part.flatten() for part in both]) for both in zip(*parts, strict=True))
        torch.testing.assert_close(r, (q - q.min() + 1e-6) / (q.max() - q.min()))

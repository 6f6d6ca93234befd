from dataclasses import dataclass, replace

import pytest
import torch

from tests.families import LLAVA
from tokenprune import get_policy, wrap
from tokenprune.errors import InvalidArgumentError, TokenPruneError
from tokenprune.layers import Event, LayerTokens
from tokenprune.policies import DivPrune, FasterVLM, VisionAttention
from tokenprune.policies.debias import DebiasedScore, debiased
from tokenprune.policies.debiasing import Debiased
from tokenprune.policies.fastv import FastV
from tokenprune.policies.holitom_inner import HoliTomInner
from tokenprune.policies.layer import LayerPolicy, at_mean, mean_share
from tokenprune.policies.layer_random import RandomLayers
from tokenprune.policies.schedule import ScheduledPolicy
from tokenprune.policies.trend import Trend
from tokenprune.tokens import Selection, VisualTokens

STEEP = Trend(coefficients=(3.0,))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_tokens(scores, *, grid=None, sizes=(), number=0, place=None, total=None):
    g, n = scores.shape
    place = torch.arange(n).expand(g, n) if place is None else place
    return LayerTokens(
        hidden=torch.zeros(g, n, 2),
        scores=scores,
        place=place,
        total=total or n,
        grid=grid,
        image_sizes=list(sizes) or [None] * g,
        event=Event(drop=2 + number, score=1 + number, number=number),
    )


@dataclass(kw_only=True)
class Steps(ScheduledPolicy):
    """Three drops, and odd answers to everything that a wrapper has to pass on."""

    positions = "compact"
    everywhere = True
    rows = "raters"
    offset = 1
    published = (0.5, 0.25, 0.125)
    layers: tuple = (1, 2, 3)

    @property
    def exact(self):
        return False

    def raters(self, x, visual, text):
        return visual & text

    def score(self, attention, event):
        return attention + event.drop

    def select(self, tokens, k):
        self.seen = tokens
        return super().select(tokens, k)


def test_the_first_event_alone_is_corrected_and_the_scores_stay_what_they_were():
    inner, scores = Steps(keep=2), randn(2, 9).abs()
    policy = debiased(inner, trend=STEEP)
    policy.select(layer_tokens(scores), 4)
    seen = policy.inner.seen
    assert torch.equal(seen.scores, scores)
    x = torch.arange(9) / 8
    torch.testing.assert_close(seen.ranking, scores * torch.exp(-3 * x))
    policy.select(layer_tokens(scores, number=1), 4)
    assert policy.inner.seen.weights is None


def test_a_planted_trend_is_taken_away_wherever_tokens_stand_now():
    """After another policy took tokens away, x is still the place in the whole picture."""
    base, place = randn(3, 20).abs(), torch.arange(20, 40).expand(3, 20)
    biased = base * torch.exp(3 * place / 39)
    tokens = layer_tokens(biased, place=place, total=40)
    policy, k = FastV(keep=6), 6
    unbiased = policy.select(replace(tokens, scores=base), k).indices
    assert torch.equal(debiased(policy, trend=STEEP).select(tokens, k).indices, unbiased)
    assert not torch.equal(policy.select(tokens, k).indices, unbiased)


def test_padding_goes_first_and_comes_back_in_raster_order():
    scores = torch.arange(1, 37).float()[None] ** -2  # the padded first row has the largest
    tokens = layer_tokens(scores, grid=(1, 6, 6), sizes=[(300, 100)])  # rows 2 and 3 of 6 are the picture
    policy = debiased(FastV(), trend=None, padding="area")
    assert policy.select(tokens, 5).indices.tolist() == [[12, 13, 14, 15, 16]]
    assert policy.select(tokens, 12).indices.tolist() == [list(range(12, 24))]
    assert policy.select(tokens, 15).indices.tolist() == [[0, 1, 2, *range(12, 24)]]
    there = tokens.place[:, 6:]  # some have left before
    fewer = layer_tokens(scores[:, 6:], place=there, total=36, grid=(1, 6, 6), sizes=[(300, 100)])
    assert there.gather(1, policy.select(fewer, 5).indices).tolist() == [[12, 13, 14, 15, 16]]


def test_every_picture_of_a_batch_has_its_own_padding():
    tokens = layer_tokens(torch.ones(2, 36), grid=(1, 6, 6), sizes=[(100, 300), (300, 100)])
    kept = debiased(FastV(), trend=None, padding="area").select(tokens, 12).indices
    assert kept[0].tolist() == [y * 6 + x for y in range(6) for x in (2, 3)]
    assert kept[1].tolist() == list(range(12, 24))


@pytest.mark.parametrize("grid", [None, (1, 4, 9), (4, 3, 3)], ids=str)
def test_a_unit_that_is_no_square_has_no_padding(grid):
    tokens = layer_tokens(torch.ones(1, 36), grid=grid)
    assert debiased(FastV(), trend=None, padding="area").select(tokens, 3).indices.tolist() == [[0, 1, 2]]


def test_padding_needs_the_sizes():
    tokens = layer_tokens(torch.ones(2, 36), grid=(1, 6, 6), sizes=[(100, 300), None])
    with pytest.raises(InvalidArgumentError, match="padding='crop' has to know .* set handle.image_sizes"):
        debiased(FastV(), trend=None, padding="crop").select(tokens, 3)


def test_everything_else_is_that_of_the_policy_inside():
    inner = Steps(keep=0.25, per="crop", rounding="floor", of="image", quota="equal")
    policy = debiased(inner, trend=STEEP)
    assert isinstance(policy, LayerPolicy)
    for name in ("keep", "per", "rounding", "of", "quota", "budget", "positions", "everywhere", "exact", "budgeted"):
        assert getattr(policy, name) == getattr(inner, name), name
    assert policy.events(8) == inner.events(8)
    assert [policy.count(event, 100) for event in policy.events(8)] == [inner.count(e, 100) for e in inner.events(8)]
    visual, text = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    assert torch.equal(policy.raters(None, visual, text), visual & text)
    assert policy.score(3.0, Event(drop=5)) == 8.0
    assert debiased(FastV(), trend=STEEP).exact
    assert mean_share(policy, 8, 100) == mean_share(inner, 8, 100)


def test_a_budget_given_later_reaches_the_policy_inside_and_leaves_the_first_alone():
    first = debiased(FastV(), trend=STEEP)
    changed = replace(replace(first, keep=7), per="frame")
    assert (changed.keep, changed.per, changed.trend) == (7, "frame", STEEP)
    assert changed.inner == FastV(keep=7, per="frame")
    assert first.inner == FastV()
    assert replace(debiased(FastV(keep=3, per="crop"), trend=STEEP), keep=5).inner == FastV(keep=5, per="crop")
    assert at_mean(debiased(Steps(), trend=STEEP), 0.6, depth=8, total=64).inner.keep is not None
    with pytest.raises(InvalidArgumentError, match="keep=3 and keeps="):
        replace(debiased(Steps(keeps=(3, 2, 1)), trend=STEEP), keep=3)


def test_the_published_trend_is_that_of_the_policy_inside():
    assert debiased("fastv").trend == Trend.published("fastv")
    assert debiased(FastV(), trend=Trend.published("himap", "gqa")).trend.coefficients[0] == pytest.approx(
        0.575 * 2.172257
    )


def test_a_path_is_read(tmp_path):
    STEEP.save(tmp_path / "trend.json")
    assert debiased(FastV(), trend=tmp_path / "trend.json").trend == STEEP
    assert debiased("fastv", trend=str(tmp_path / "trend.json")).trend == STEEP


def test_a_score_in_the_tower_loses_its_trend_over_the_sequence():
    base = randn(2, 16).abs()
    x = torch.arange(16) / 15

    def biased(tokens):
        return base * torch.exp(3 * x)

    biased.needs = VisionAttention().needs
    part = debiased(biased, trend=STEEP)
    assert isinstance(part, DebiasedScore)
    assert part.needs == VisionAttention().needs
    tokens = VisualTokens(features=randn(2, 16, 4))
    torch.testing.assert_close(part(tokens), base)
    chosen = FasterVLM(attention=part).select(tokens, 5)
    assert torch.equal(chosen.indices, Selection.subset(base.topk(5).indices).indices)
    assert not torch.equal(FasterVLM(attention=biased).select(tokens, 5).indices, chosen.indices)
    assert debiased(VisionAttention(), trend=STEEP).needs == VisionAttention().needs


def test_it_leaves_alone_what_the_inner_policy_leaves_alone():
    assert debiased(FastV(), trend=STEEP).kinds == {"image", "video"}
    assert debiased(HoliTomInner(), trend=STEEP).kinds == {"video"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: debiased(FastV(), trend=None), "trend=None and padding=None correct nothing"),
        (lambda: debiased(FastV(), padding="areal"), r"padding='areal' is not one of .*did you mean 'area'"),
        (lambda: debiased(FastV(), padding="area", threshold=1.0), r"threshold=1.0 is not in \[0, 1\)"),
        (lambda: debiased(FastV(), trend=3.0), "trend=3.0 is neither 'published', a path, a Trend nor None"),
        (lambda: debiased("fastw"), "'fastw' is not registered"),
        (lambda: debiased("divprune"), "is no policy at stage 'layer'"),
        (lambda: debiased(DivPrune(keep=3)), r"debias what a policy ranks by, as in FasterVLM"),
        (lambda: debiased(FastV), "is neither a policy at stage 'layer' nor a score"),
        (lambda: debiased(VisionAttention()), "no curve of 'VisionAttention', only of fastv, himap"),
        (lambda: debiased(VisionAttention(), trend=None), "trend=None corrects nothing"),
        (lambda: debiased(VisionAttention(), trend=STEEP, padding="area"), "padding='area' needs the sizes"),
        (lambda: debiased(debiased(FastV(), trend=STEEP)), "no curve of 'debiased'"),
        (lambda: debiased(RandomLayers(), trend=STEEP).events(8), "'random-layers' looks at no attention"),
        (lambda: Debiased(keep=0.5).events(8), "inner=None leaves 'debiased' nothing to correct"),
        (lambda: Debiased(keep=0), "keep=0 keeps no token"),
    ],
)
def test_bad_values_are_named(make, words):
    with pytest.raises(TokenPruneError, match=words):
        make()


def test_by_name_alone_it_has_nothing_to_correct():
    assert get_policy("debiased") is Debiased
    model = LLAVA.model()
    with pytest.raises(InvalidArgumentError, match="inner=None leaves 'debiased' nothing to correct"):
        wrap(model, "debiased", keep=0.5)

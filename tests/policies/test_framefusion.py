"""FrameFusion: chains over time, its two steps, and the published budget."""

import pytest
import torch

import tokenprune
from tests.default_layer_policies import layer_tokens
from tests.families import BY_NAME
from tokenprune import FrameFusion, InvalidArgumentError, UnsupportedPolicyError
from tokenprune.layers import Event

VIDEO = BY_NAME["llava_onevision-video"]


def still(frames, positions, dim=16, changed=()):
    """[1, frames * positions, dim] of a still video, but for (frame, position) entries that are drawn anew."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, positions, dim, generator=generator).repeat(frames, 1, 1)
    for frame, position in changed:
        x[frame, position] = torch.randn(dim, generator=generator)
    return x.reshape(1, -1, dim)


def merge_tokens(x, frames, **fields):
    return layer_tokens(x, grid=(frames, x.shape[1] // frames, 1), event=Event(drop=0), **fields)


def test_what_does_not_change_joins_its_first_frame():
    tokens = merge_tokens(still(4, 5, changed=[(2, 3)]), 4)
    found = FrameFusion().select(tokens, 7)  # five positions; 3 changes twice
    assert found.indices.tolist() == [[0, 1, 2, 3, 4, 13, 18]]
    assert found.sizes.tolist() == [[4, 4, 4, 2, 4, 1, 1]]
    torch.testing.assert_close(found.features, tokens.hidden[:, found.indices[0]])


def test_fewer_tokens_than_positions_join_along_the_raster():
    x = still(3, 4)
    x[:, 1::4] = x[:, 0::4]  # position 1 looks like 0
    found = FrameFusion().select(merge_tokens(x, 3), 3)
    assert found.indices.tolist() == [[0, 2, 3]]
    assert found.sizes.tolist() == [[6, 3, 3]]


def test_frames_that_are_not_known():
    with pytest.raises(UnsupportedPolicyError, match="the frames of this video are not known"):
        FrameFusion().select(layer_tokens(torch.randn(1, 6, 4), grid=None), 3)


def test_a_model_merges_before_layer_0_and_prunes_before_layer_1():
    model, inputs = VIDEO.model(), VIDEO.inputs((2,))
    with tokenprune.wrap(model, FrameFusion()) as handle:
        model(**inputs)
        report = handle.report()
    total = report.total
    assert [(event.layer, event.scored) for event in report.events] == [(0, None), (1, 0)]
    assert report.events[0].kept == total // 2
    assert report.kept == report.events[1].kept == sum(round(0.2926 * unit.total) for unit in report.units)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("bound", [-1.0, 0.2, 0.9])
def test_the_published_rule_meets_its_cost(target, bound):
    """Whatever is similar: the layers read the target share on average, but for rounding, unless nothing is asked."""
    model, inputs = VIDEO.model(), VIDEO.inputs((1,))
    depth = len(model.base_model.language_model.layers)
    policy = FrameFusion(strict_paper=True, target_cost=target, similarity_lower_bound=bound, keep=0.5)
    with tokenprune.wrap(model, policy) as handle:
        model(**inputs)
        report = handle.report()
    read = [event.kept for event in report.events]
    assert len(read) == depth
    assert abs(sum(read) / depth / report.total - target) < 1.5 / report.total
    assert read == sorted(read, reverse=True)


def test_the_published_rule_stops_when_the_budget_is_used():
    policy = FrameFusion(strict_paper=True, target_cost=0.5, similarity_lower_bound=-1.0)
    tokens = merge_tokens(still(4, 5), 4, depth=10, entered=[()])
    merged = policy.select(tokens, 20)
    assert merged.indices.shape[1] == 10  # u = 1 - 10 * 0.5 / 10
    after = layer_tokens(merged.features, grid=(4, 5, 1), total=20, depth=10, entered=[(10,)], event=Event(drop=1))
    assert policy.select(after, 10).indices.tolist() == [list(range(10))]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"target_cost": 1.5}, r"target_cost=1.5 is not in \[0.0, 1\]"),
        ({"similarity_lower_bound": "much"}, "similarity_lower_bound='much' is not in"),
        ({"layers": (0, 1, 2)}, "are 3, where the published schedule has 2"),
    ],
)
def test_bad_fields(fields, match):
    with pytest.raises(InvalidArgumentError, match=match):
        FrameFusion(**fields)

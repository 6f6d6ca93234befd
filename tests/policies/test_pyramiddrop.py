import pytest
import torch

from tests.default_layer_policies import causal_attention
from tokenprune.policies import PyramidDrop, ScheduledPolicy, SparseVLM, mean_share
from tokenprune.policies.schedule import layer_at


def test_each_layer_scores_what_it_would_see():
    events = PyramidDrop().events(32)
    assert [(event.score, event.drop, event.rows) for event in events] == [(r, r, "last") for r in (8, 16, 24)]
    assert PyramidDrop().positions == "compact"


def test_scores_are_the_mean_over_heads_of_the_last_row():
    attention = causal_attention([(3, 9, 4)], rows="last")
    scores = PyramidDrop().score(attention, PyramidDrop().events(32)[0])
    torch.testing.assert_close(scores, attention.probabilities.mean(1)[:, 0])


def counts(policy, total):
    return [policy.count(event, total) for event in policy.events(32)]


def test_counts_are_truncated_shares_of_what_came_in():
    assert counts(PyramidDrop(), 576) == [288, 144, 72]
    assert counts(PyramidDrop(), 99) == [49, 24, 12]
    assert counts(PyramidDrop(keeps=(0.32, 0.16, 0.08), layers=(2, 10, 20)), 576) == [184, 92, 46]
    assert counts(PyramidDrop(keeps=(0.29, 20, 0)), 100) == [29, 20, 0]
    assert counts(PyramidDrop(keeps=(0.29, 20, 0)), 10) == [2, 10, 0]


def test_the_published_means_are_met():
    assert mean_share(PyramidDrop(), 32, 576) * 576 == 270
    assert mean_share(PyramidDrop(layers=(2, 10, 20), keeps=(0.32, 0.16, 0.08)), 32, 576) * 576 == pytest.approx(
        128, abs=1
    )


def test_with_keep_every_stage_takes_the_same_share():
    assert counts(PyramidDrop(keep=0.125), 576) == [288, 144, 72]
    assert counts(PyramidDrop(keep=8), 512) == [128, 32, 8]
    assert counts(PyramidDrop(keep=16, layers=(4, 9)), 256) == [64, 16]
    assert counts(PyramidDrop(keep=16, layers=(4,)), 256) == [16]


def test_shares_of_the_depth_are_rounded_down_and_moved_apart():
    def drops(layers, depth, kind=PyramidDrop):
        return [event.drop for event in kind(layers=layers, keeps=(0.5,) * len(layers)).events(depth)]

    assert drops((0.25, 0.5, 0.75), 28) == [7, 14, 21]
    assert drops((0.05, 0.06, 0.07), 10) == [1, 2, 3]
    assert drops((0.9, 0.95, 0.99), 10) == [7, 8, 9]
    assert drops((0.01, 3), 10) == [1, 3]
    assert drops((3, 0.3), 10) == [3, 4]
    assert drops((0.3, 3), 10) == [2, 3]
    assert drops((2 / 32, 6 / 32, 15 / 32), 32, SparseVLM) == [3, 7, 16]
    assert drops((2 / 32, 6 / 32, 15 / 32), 5, SparseVLM) == [1, 2, 3]
    assert layer_at(0.29, 100) == 29
    assert issubclass(PyramidDrop, ScheduledPolicy)

import json

import pytest
import torch

from tests.default_layer_policies import causal_attention
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import AdaptInfer

SIZES = [(3, 9, 4), (1, 6, 7), (5, 11, 1)]


def by_hand(attention, i, lb):
    """[L], with all of T2T and T2V."""
    rows = attention.rows[i, attention.row_mask[i]]
    maps = attention.probabilities[i][:, attention.row_mask[i]].double()
    words = maps[:, :, rows]
    prior = words + words.mT - torch.diag_embed(words.diagonal(dim1=1, dim2=2))
    prior = lb * prior + (1 - lb) * prior.mean()
    return torch.einsum("ht,htl->l", prior.sum(2), maps)


@pytest.mark.parametrize("lb", [0, 0.25, 1.0])
@pytest.mark.parametrize("some", [1, 2, 50])
def test_scores_are_those_of_whole_maps(lb, some):
    policy, attention = AdaptInfer(lb=lb), causal_attention(SIZES, rows="text")
    attention.some = some
    scores = policy.score(attention, policy.events(32)[0])
    for i in range(len(SIZES)):
        seen = attention.visual[i]
        torch.testing.assert_close(scores[i, seen], by_hand(attention, i, lb)[seen].float())


def test_without_prior_all_words_count_alike():
    policy, attention = AdaptInfer(lb=0), causal_attention(SIZES, rows="text")
    scores, plain = policy.score(attention, policy.events(32)[0]), attention.total()
    for i in range(len(SIZES)):
        ratio = (scores / plain)[i, attention.visual[i]]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_the_published_schedules():
    policy = AdaptInfer()
    assert [(event.score, event.drop, event.rows) for event in policy.events(32)] == [
        (1, 2, "text"),
        (10, 11, "text"),
        (20, 21, "text"),
    ]
    assert [policy.count(event, 576) for event in policy.events(32)] == [290, 72, 18]
    assert policy.positions == "compact"
    last = AdaptInfer(keeps=(40, 12, 0))
    assert [last.count(event, 576) for event in last.events(32)] == [40, 12, 0]


def test_a_schedule_comes_from_a_file(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({"layers": [3, 9], "keeps": [0.4, 10], "model": "any"}))
    policy = AdaptInfer.from_schedule(path, lb=0.5)
    assert (policy.layers, policy.keeps, policy.lb) == ((3, 9), (0.4, 10), 0.5)
    assert AdaptInfer.from_schedule(str(path)).lb == 1.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ("[1, 2]", "TypeError"),
        ('{"layers": [3]}', "KeyError: 'keeps'"),
        ('{"layers": 3, "keeps": [0.5]}', "TypeError"),
    ],
)
def test_a_file_without_a_schedule_is_refused(tmp_path, text, says):
    path = tmp_path / "schedule.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=f"schedule.json' holds no schedule .{says}"):
        AdaptInfer.from_schedule(path)


@pytest.mark.parametrize("lb", [-0.1, 1.1, True, "1", None, float("nan")])
def test_the_weight_of_the_prior_is_a_share(lb):
    with pytest.raises(InvalidArgumentError, match="lb="):
        AdaptInfer(lb=lb)

import pytest
import torch

from tests.default_layer_policies import causal_attention, layer_tokens
from tokenprune.errors import PolicyError, UnsupportedPolicyError
from tokenprune.policies import PruneVidInside

SIZES = [(3, 9, 4), (1, 6, 7), (5, 11, 1)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_scores_in_the_layer_before_the_drop_by_all_words():
    (event,) = PruneVidInside().events(32)
    assert (event.score, event.drop, event.rows) == (10, 11, "text")
    assert [PruneVidInside(layers=(5,)).events(depth)[0].drop for depth in (8, 32)] == [6, 6]
    policy = PruneVidInside()
    assert (policy.positions, policy.kinds, policy.count(event, 100)) == ("original", frozenset({"video"}), 40)


def test_scores_are_the_maximum_over_heads_and_words():
    attention = causal_attention(SIZES)
    scores = PruneVidInside().score(attention, PruneVidInside().events(32)[0])
    torch.testing.assert_close(scores, attention.probabilities.amax((1, 2)))
    for i, (before, video, words) in enumerate(SIZES):
        rows = attention.probabilities[i, :, :words, before : before + video]
        assert torch.equal(scores[i, before : before + video], rows.amax((0, 1)))


def frames(left, **fields):
    """Tokens that are left of 4 frames of 10 tokens; the frames have 10, 7, 4 and 2."""
    place = torch.tensor([*range(10), *range(10, 17), *range(20, 24), 30, 39])[None]
    return layer_tokens(randn(1, 23, 4), randn(1, 23, seed=left).abs(), place=place, total=40, grid=(4, 2, 5), **fields)


@pytest.mark.parametrize("fields", [{"keep": 0.4}, {"keeps": (0.6,)}, {}, {"keep": 10}], ids=str)
def test_as_published_every_frame_keeps_its_share_of_what_is_there(fields):
    policy, tokens = PruneVidInside(strict_paper=True, **fields), frames(0)
    alpha = 10 / 23 if fields.get("keep") == 10 else 0.6 if "keeps" in fields else 0.4
    expected, start = [], 0
    for n in (10, 7, 4, 2):
        best = sorted(range(start, start + n), key=lambda i: -float(tokens.scores[0, i]))
        expected += best[: int(n * alpha)]
        start += n
    found = policy.select(tokens, 23)
    assert found.indices.tolist() == [sorted(expected)]
    assert (policy.exact, policy.everywhere, policy.count(tokens.event, 40)) == (False, True, 40)


def test_by_default_the_best_of_all_stay():
    tokens = frames(1)
    best = tokens.scores.argsort(descending=True)[:, :9].sort().values
    assert torch.equal(PruneVidInside(keep=9).select(tokens, 9).indices, best)


def test_as_published_it_needs_frames_and_leaves_something():
    with pytest.raises(UnsupportedPolicyError, match="frames of this video are not known"):
        PruneVidInside(strict_paper=True).select(layer_tokens(randn(1, 23, 4), grid=None), 23)
    with pytest.raises(PolicyError, match="keep=0.05 with strict_paper leaves no token of any of 4 frames"):
        PruneVidInside(keep=0.05, strict_paper=True).select(frames(0), 23)

from dataclasses import replace

import pytest
import torch

from tests.default_policies import PATCHES, WIDTH, visual_tokens
from tokenprune.errors import InvalidArgumentError, PolicyError
from tokenprune.policies import FastVID, FrameClassToken, FrameMean
from tokenprune.policies.fastvid_counts import exact_counts, segmented
from tokenprune.tokens import Tap

T, N, D = 9, 8, 6
SCENES = (0, 0, 0, 0, 0, 1, 1, 1, 2)  # of frames


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tokens():
    """Three scenes; `tower` gives attention by the token's place."""
    scenes = 2.0 + randn(3, N, D) + 3 * randn(3, 1, D, seed=1)
    x = scenes[list(SCENES)] + 0.3 * randn(T, N, D, seed=2)
    return visual_tokens(x.flatten(0, 1)[None], grid=(T, 2, 4))


A = torch.rand(1, T * N, generator=torch.Generator().manual_seed(3))
GIVEN = {"c": 1, "tau": 0.9, "attention": lambda tokens: A}


def density(x):
    """rho delta of each token, in float64, pair by pair."""
    distance = torch.cdist(x, x) / x.shape[1] ** 0.5
    rho = (-(distance.sort(1).values[:, :4] ** 2).mean(1)).exp()
    score = []
    for i in range(len(x)):
        denser = [float(distance[i, j]) for j in range(len(x)) if rho[j] > rho[i]]
        score.append(float(rho[i]) * min(denser, default=float(distance.max())))
    return torch.tensor(score)


def by_hand(tokens, counts, beta, themselves):
    """Index -> row of every survivor, anchor by anchor, from how many each frame has."""
    x, rows = tokens.features[0].double().unflatten(0, (T, N)), {}
    salient = [A[0].view(T, N)[t].argsort(descending=True)[: counts.salient[t]].tolist() for t in range(T)]
    anchors = []
    for t in range(T):
        rows |= {t * N + i: x[t, i] for i in salient[t]}
        rest = [i for i in range(N) if i not in salient[t]]
        best = density(x[t, rest]).argsort(descending=True)[: counts.anchors[t]].tolist() if rest else []
        anchors.append(sorted(rest[i] for i in best))
    for segment in counts.segments:
        for t in segment:
            members = {i: [] for i in anchors[t]}
            for s in segment if anchors[t] else []:
                for j in set(range(N)) - set(salient[s]) - (set() if themselves or s != t else set(anchors[t])):
                    cosine = torch.nn.functional.cosine_similarity(x[s, j], x[t, anchors[t]], dim=-1)
                    members[anchors[t][int(cosine.argmax())]].append(x[s, j])
            for i, taken in members.items():
                w = max(1 / (len(taken) + 1), beta)
                rows[t * N + i] = w * x[t, i] + (1 - w) * (sum(taken) / len(taken) if taken else 0)
    return rows


@pytest.mark.parametrize("form", ["parallel", "sequential"])
@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("k", [1, 4, 11, 20, 37, 60, 71])
def test_it_is_the_rule(tokens, form, beta, k):
    policy = FastVID(form=form, beta=beta, p=2, **GIVEN)
    counts = segmented(policy.similarity(tokens)[0], N, 1, 0.9, None)
    assert [len(one) for one in counts.segments] == [5, 3, 1]
    expected = by_hand(tokens, exact_counts(k, counts, policy.d, policy.p), beta, form == "parallel")
    selection = policy.select(tokens, k)
    assert selection.indices[0].tolist() == sorted(expected)
    rows = torch.stack([expected[i] for i in sorted(expected)])
    torch.testing.assert_close(selection.features[0].double(), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["parallel", "sequential"])
@pytest.mark.parametrize("k", [5, 20, 37, 60])
def test_with_one_frame_of_anchors_a_segment_rows_are_the_weighted_means_of_their_sources(tokens, form, k):
    policy = FastVID(form=form, p=T, **GIVEN)
    selection = policy.select(tokens, k)
    shares, source = selection.merge_weights(T * N)[0], selection.source[0]
    expected = torch.zeros(k + 1, D).index_add_(0, source.where(source >= 0, k), tokens.features[0] * shares[:, None])
    torch.testing.assert_close(selection.features[0], expected[:k], rtol=1e-5, atol=1e-5)
    assert (selection.sizes > 1).any()


def test_a_token_of_several_anchors_is_said_to_go_to_the_most_similar(tokens):
    selection = FastVID(p=1, d=0.5, tau=-1.0, c=1, attention=GIVEN["attention"]).select(tokens, 36)
    x = torch.nn.functional.normalize(tokens.features[0].double(), dim=-1)
    kept = selection.indices[0]
    anchors = [
        i for i in kept.tolist() if int(A[0].view(T, N)[i // N].argsort(descending=True)[:2].eq(i % N).sum()) == 0
    ]
    assert len(anchors) == 2 * T
    for i in range(T * N):
        place = int(selection.source[0, i])
        carrier = i if i in kept.tolist() else anchors[int((x[anchors] @ x[i]).argmax())]
        assert int(kept[place]) == carrier


def test_noise_decides_between_equal_tokens():
    """One frame, token 7 salient, token 0 apart from six equal ones, of which the densest becomes the anchor."""
    tokens = visual_tokens((torch.arange(N) == 0).float()[None, :, None] + torch.ones(1, N, D), grid=(1, 2, 4))
    policy = FastVID(d=0.5, attention=lambda _: torch.arange(N).float()[None])
    noise = torch.tensor([0.9, 0.2, 0.1, 0.3, 0.8, 0.2, 0.7])[None, None]
    assert policy.select(tokens, 2).indices.tolist() == [[1, 7]]
    assert policy.select(tokens, 2, noise).indices.tolist() == [[4, 7]]


def test_what_is_not_salient_is_lost_without_anchors(tokens):
    selection = FastVID(d=0.0, **GIVEN).select(tokens, 18)
    assert torch.equal(selection.features[0], tokens.features[0, selection.indices[0]])
    assert int((selection.source >= 0).sum()) == 18
    assert [int(n) for n in torch.bincount(selection.indices[0] // N)] == [2] * T


def counted(selection):
    return torch.bincount(selection.indices[0] // N, minlength=T).tolist()


def test_ignored_frames_get_tokens_only_where_the_others_are_full(tokens):
    like = 1.0 - 1e-9
    for ignore, k, counts in (
        (like, 9, [1] * T),
        (-1.0, 9, [0, 0, 0, 0, 5, 0, 0, 3, 1]),
        (-1.0, 18, [1, 1, 0, 0, 8, 0, 0, 6, 2]),
        (None, 9, [1] * T),
    ):
        policy = FastVID(form="sequential", ignore=ignore, d=0.0, **GIVEN)
        assert counted(policy.select(tokens, k)) == counts


def strict(tokens, keep, **fields):
    policy = FastVID(keep=keep, strict_paper=True, **(GIVEN | fields))
    assert not policy.exact
    return policy.select(tokens, policy.budget.count(T * N))


def test_strict_parallel_floors_by_frame(tokens):
    """R = 4, C = 2, S = 2; anchors floor(2 P / n_a) = 5 in two frames of 5, 6 in one of 3, 2 in one of 1."""
    assert counted(strict(tokens, 0.5, d=0.5)) == [2 + 5, 2, 2, 2, 2 + 5, 2, 2, 2 + 6, 2 + 2]
    with pytest.raises(PolicyError, match="too few tokens left for its anchors"):
        strict(tokens, 0.5, d=0.75)  # C = 3: 7 in a frame with 7 left, 9 in another
    with pytest.raises(PolicyError, match="too few tokens left for its anchors"):
        strict(tokens, 0.9, d=0.2, p=1)  # two left for one anchor, of which densities are taken with four
    with pytest.raises(PolicyError, match="a segment gets no anchor"):
        strict(tokens, 0.25, d=0.4)
    with pytest.raises(PolicyError, match="cannot cut 9 frames into c=10 segments"):
        strict(tokens, 0.5, c=10)


def test_strict_parallel_looks_into_other_frames_only_where_anchors_are_more_than_those_of_a_frame(tokens):
    """With p = 1 every frame has its C anchors, and another frame's tokens do not matter."""
    there = replace(tokens, features=tokens.features.clone())
    there.features[0, : 4 * N] += 0.1 * randn(4 * N, D)
    for p, same in ((1, True), (2, False)):
        here, other = (strict(one, 0.5, d=0.5, p=p) for one in (tokens, there))
        last = here.indices[0] // N == 4
        assert torch.equal(here.indices[0, last], other.indices[0, other.indices[0] // N == 4])
        assert torch.equal(here.features[0, last], other.features[0, other.indices[0] // N == 4]) == same


def test_strict_sequential_floors_by_segment(tokens):
    """R = 4 a frame; of 20, 12 and 4 tokens int(0.4 n) = 8, 4 and 1 are anchors, those of 5 frames in two of them."""
    counts = counted(strict(tokens, 0.5, form="sequential"))
    assert counts == [3 + 4, 3, 2, 2, 2 + 4, 3, 3, 2 + 4, 3 + 1]


def test_strict_with_ignored_frames_loses_what_does_not_fit(tokens):
    counts = counted(strict(tokens, 0.5, form="sequential", ignore=-1.0))
    assert counts == [0, 0, 0, 0, 8, 0, 0, 8, 4]
    assert counted(strict(tokens, 0.125, form="sequential", ignore=-1.0, d=0.0)) == [0, 0, 0, 0, 5, 0, 0, 3, 1]
    with pytest.raises(PolicyError, match="leave strict_paper out"):
        strict(tokens, 0.1, form="sequential", ignore=-1.0)


def test_frame_features(tokens):
    mean = FrameMean()(tokens)
    torch.testing.assert_close(mean, tokens.features.unflatten(1, (T, N)).mean(2))
    rows = randn(1, T, 1, 1, WIDTH).expand(1, T, N, PATCHES, WIDTH)
    shown = replace(tokens, tower={Tap("class_token"): rows.flatten(1, 2)})
    assert torch.equal(FrameClassToken()(shown), rows[:, :, 0, 0])
    assert FastVID(frames=FrameClassToken()).needs == {"features", Tap("attention"), Tap("class_token")}
    assert FastVID(**GIVEN).needs == {"features"}
    far = FastVID(frames=lambda _: torch.eye(T)[None], **GIVEN)
    assert len(segmented(far.similarity(tokens)[0], N, far.c, far.tau, None).segments) == T


@pytest.mark.parametrize(
    "fields",
    [
        {"c": 0},
        {"p": 1.5},
        {"tau": 2.0},
        {"d": -0.1},
        {"beta": None},
        {"form": "both"},
        {"ignore": 3.0, "form": "sequential"},
        {"frames": 1},
        {"attention": 1},
    ],
)
def test_fields_are_checked(fields):
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(fields))}="):
        FastVID(**fields)
    with pytest.raises(InvalidArgumentError, match="form='parallel'"):
        FastVID(ignore=0.9)

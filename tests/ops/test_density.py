import pytest
import torch

from tokenprune.ops import centre_weights, density, density_peaks, density_scores, nearest_centre, recycled_map


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(x, c, neighbours=None, noise=None):
    """The rule for one unit, in float64, pair by pair."""
    m, d = x.shape
    distance = (x.double()[:, None] - x.double()).norm(dim=-1) / d**0.5
    rho = [float((-(distance[a].sort().values[: neighbours or c] ** 2).mean()).exp()) for a in range(m)]
    if noise is not None:
        rho = [r + 1e-6 * float(u) for r, u in zip(rho, noise, strict=True)]
    denser = [[b for b in range(m) if (-rho[b], b) < (-rho[a], a)] for a in range(m)]
    delta = [min(float(distance[a, b]) for b in denser[a]) if denser[a] else float(distance.max()) for a in range(m)]
    centres = sorted(range(m), key=lambda a: (-rho[a] * delta[a], a))[:c]
    cluster = [min(range(c), key=lambda i, a=a: (float(distance[a, centres[i]]), i)) for a in range(m)]
    for i, centre in enumerate(centres):
        cluster[centre] = i
    return centres, cluster


@pytest.mark.parametrize("c", [1, 2, 5, 12, 40])
def test_it_is_the_rule(c, monkeypatch):
    x = randn(3, 40, 6)
    expected = [by_hand(unit, c) for unit in x]
    for block in (density.DISTANCES, 3 * 40 * 7):  # all at once, and seven rows at a time
        monkeypatch.setattr(density, "DISTANCES", block)
        centres, cluster = density_peaks(x, c)
        assert list(zip(centres.tolist(), cluster.tolist(), strict=True)) == expected


@pytest.mark.parametrize("neighbours", [1, 7, 40, 99])
def test_neighbours_may_be_other_than_the_clusters(neighbours, monkeypatch):
    x = randn(3, 40, 6)
    expected = [by_hand(unit, 5, neighbours) for unit in x]
    for block in (density.DISTANCES, 3 * 40 * 7):
        monkeypatch.setattr(density, "DISTANCES", block)
        centres, cluster = density_peaks(x, 5, neighbours=neighbours)
        assert list(zip(centres.tolist(), cluster.tolist(), strict=True)) == expected


def test_noise_tells_equal_densities_apart():
    x, noise = torch.eye(6)[None].repeat(2, 1, 1), torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    centres, cluster = density_peaks(x, 3, neighbours=4, noise=noise)
    expected = [by_hand(unit, 3, 4, u) for unit, u in zip(x, noise, strict=True)]
    assert list(zip(centres.tolist(), cluster.tolist(), strict=True)) == expected
    assert centres[:, 0].tolist() == noise.argmax(1).tolist() != [0, 0]


def test_scores_are_logarithms_of_density_times_distance():
    x = randn(2, 20, 6)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / 6**0.5
    rho = (-(distance.sort(-1).values[..., :7] ** 2).mean(-1)).exp()
    denser = rho[:, None] > rho[:, :, None]
    delta = distance.masked_fill(~denser, torch.inf).amin(-1).minimum(distance.amax((1, 2))[:, None])
    torch.testing.assert_close(density_scores(x, 7), (rho * delta).log())
    assert density_scores(torch.ones(1, 3, 4), 7).tolist() == [[-torch.inf] * 3]


def test_each_token_is_with_the_nearest_centre(monkeypatch):
    x, centres = randn(2, 40, 6), torch.tensor([[3, 9, 30], [0, 1, 2]])
    x[0, 30] = x[0, 9]
    for block in (density.DISTANCES, 2 * 3 * 7):
        monkeypatch.setattr(density, "DISTANCES", block)
        found = nearest_centre(x, centres)
        for g in range(2):
            for i in range(40):
                distances = [float((x[g, i] - x[g, c]).norm()) for c in centres[g].tolist()]
                own = centres[g].tolist().index(i) if i in centres[g].tolist() else None
                assert found[g, i] == (distances.index(min(distances)) if own is None else own)


def test_weights_of_a_centre_and_of_what_joined_it():
    cluster, centres = torch.tensor([[0, 1, 0, 0, 2]]), torch.tensor([[2, 1, 4]])
    torch.testing.assert_close(centre_weights(cluster, centres, 0.6), torch.tensor([[0.2, 1.0, 0.6, 0.2, 1.0]]))
    assert centre_weights(cluster, centres, 0.0)[0].tolist() == [0.5, 1.0, 0.0, 0.5, 1.0]
    assert centre_weights(cluster, centres, None).tolist() == [[1.0] * 5]


def test_twins_tie_by_index_and_share_a_cluster():
    x = torch.tensor([[[0.0], [5.0], [0.0], [5.0], [9.0]]])
    centres, cluster = density_peaks(x, 2)
    assert (centres.tolist(), cluster.tolist()) == ([[0, 1]], [[0, 1, 0, 1, 1]])
    centres, cluster = density_peaks(torch.ones(2, 4, 3), 3)
    assert centres.tolist() == [[0, 1, 2]] * 2
    assert cluster.tolist() == [[0, 1, 2, 0]] * 2


def test_densities_that_float32_would_round_to_zero_are_told_apart():
    centres, _ = density_peaks(torch.tensor([[[0.0], [30000.0], [32000.0]]]), 2)
    assert centres.tolist() == [[1, 2]]


@pytest.mark.parametrize("last", [False, True])
def test_a_recycled_map_carries_the_best_of_the_others(last):
    hidden, scores = randn(2, 30, 4), randn(2, 30, seed=1)
    kept = torch.stack([torch.tensor([1, 8, 20, 29]), torch.tensor([0, 1, 2, 28])])
    indices, source = recycled_map(hidden, scores, kept, 12, 3, last=last)
    for g in range(2):
        chosen = kept[g].tolist()
        others = sorted(set(range(30)) - set(chosen), key=lambda i: -float(scores[g, i]))
        centres, cluster = by_hand(hidden[g, others[:12]], 3)
        slots = sorted(others)[-3:] if last else [others[i] for i in centres]
        assert indices[g].tolist() == sorted(chosen + slots)
        logical = [*chosen, *slots] if not last else sorted(chosen + slots)
        expected = [-1] * 30
        for i, token in enumerate(chosen):
            expected[token] = i if last else indices[g].tolist().index(token)
        for token, c in zip(others[:12], cluster, strict=True):
            expected[token] = 4 + c if last else indices[g].tolist().index(logical[4 + c])
        assert source[g].tolist() == expected

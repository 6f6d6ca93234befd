"""FTP's router, its schedules and its folder."""

import pytest
import torch

from tokenprune import FTP, SkipTokens, get_policy
from tokenprune.errors import InvalidArgumentError, PredictorError
from tokenprune.predictors import PruningModule, TokenRouter


def tokens(scores, sparsity=0.3, block=1):
    scores = torch.tensor([scores])
    n = scores.shape[1]
    return SkipTokens(
        place=torch.arange(n)[None],
        real=torch.ones(1, n, dtype=torch.bool),
        scores=scores,
        block=block,
        sparsity=sparsity,
    )


class Listening(torch.nn.Module):
    def forward(self, x):
        self.heard = x
        return x[..., :2]


def test_the_four_factors():
    router = TokenRouter()
    router.mlp = Listening()
    place, real = torch.tensor([[-1, 0, 1, 2, 3]]), torch.tensor([[False, True, True, True, True]])
    router(place, real, torch.tensor([[9.0, 0.2, 0.6, 0.2, 0.4]]), 0.25)
    share = torch.tensor([0.2, 0.6, 0.2, 0.4])
    wanted = [[0, 0.25, 0.5, 0.75], (1 + share / 0.35).log().tolist(), [0.5, 0, 0.5, 0.25], [0.25] * 4]
    torch.testing.assert_close(router.mlp.heard[0, 1:], torch.tensor(wanted).T)
    assert sum(one.numel() for one in TokenRouter().parameters()) == 4 * 64 + 64 + 64 * 2 + 2


def test_priorities():
    shown = tokens([0.1, 0.4, 0.2, 0.3])
    assert FTP(router="static").priority(shown).tolist() == [[0, 1, 2, 3]]
    drawn = [FTP(router="random", seed=seed).priority(tokens([0.25] * 4, block=i)) for seed in (0, 1) for i in (1, 2)]
    assert len({str(one.tolist()) for one in drawn}) == 4
    assert torch.equal(drawn[0], FTP(router="random").priority(shown))
    router = TokenRouter()
    logits = router(shown.place, shown.real, shown.scores, shown.sparsity)
    assert torch.equal(FTP(predictor=router).priority(shown), logits[..., 1] - logits[..., 0])


def test_schedules_between_those_that_were_searched():
    router = TokenRouter(schedules=[[0.0, 0.6, 0.6], [0.0, 0.3, 0.0]])
    for mean, wanted in ((0.0, [0, 0, 0]), (0.05, [0, 0.15, 0]), (0.1, [0, 0.3, 0]), (0.25, [0, 0.45, 0.3])):
        assert router.schedule_at(mean) == pytest.approx(wanted)
        assert FTP(predictor=router, sparsity=mean).shares(3) == pytest.approx(wanted)
        assert FTP(predictor=router, sparsity=mean, router="static").shares(3) == pytest.approx(wanted)
    with pytest.raises(PredictorError, match=r"sparsity=0.5 is above 0.4"):
        router.schedule_at(0.5)
    assert TokenRouter().schedule_at(0.3) is None
    assert FTP(router="static", sparsity=0.3).shares(2) == [0.3, 0.3]
    with pytest.raises(InvalidArgumentError, match="as many shares"):
        TokenRouter(schedules=[[0.1], [0.1, 0.2]])


def test_a_router_comes_back_from_its_folder(tmp_path):
    router = TokenRouter(schedules=[[0.0, 0.4]], rows=5, hidden=8, base={"model_type": "llama", "layers": 2})
    router.save_pretrained(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir() if one.suffix in (".json", ".safetensors")) == [
        "config.json",
        "model.safetensors",
    ]
    policy = FTP(predictor=tmp_path, sparsity=0.1)
    again = policy.trained
    assert (again.schedules, again.rows, again.base) == (router.schedules, 5, router.base)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), router.parameters(), strict=True))
    assert (policy.rows, policy.shares(2)) == (5, pytest.approx([0, 0.2]))
    with pytest.raises(PredictorError, match="'covipal' is asked for"):
        PruningModule.from_pretrained(tmp_path)


def test_bad_arguments():
    assert get_policy("ftp") is FTP
    bad = ({"schedule": [1.2]}, {"schedule": -1}, {"schedule": "0.5"}, {"schedule": [None]})
    for more in ({"router": "statik"}, {"sparsity": 1.0}, {"predictor": 3}, {"keep": 0.5}, *bad):
        with pytest.raises(InvalidArgumentError, match=next(iter(more))):
            FTP(**more)
    with pytest.raises(PredictorError, match="nowhere"):
        FTP(predictor="/nowhere/at/all").trained  # noqa: B018 -- read when it is first needed

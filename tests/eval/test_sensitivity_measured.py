"""The closed form of the sensitivity in place of the estimate: thresholds lie well below what the script prints."""

import json

import pytest
import torch

from tokenprune.eval import sensitivity


@pytest.fixture(scope="module")
def result():
    with torch.inference_mode():
        return {
            "machine": "",
            "units": 2,
            "cases": [
                sensitivity.compare(case, repeats=1)
                for case in (
                    sensitivity.embedded(2),
                    sensitivity.gated(2, tokens=100, width=64, hidden=128),
                    sensitivity.merger(2, tokens=100, width=32, out=64),
                )
            ],
        }


@pytest.mark.parametrize("number", range(3))
def test_it_ranks_and_keeps_what_the_estimate_does(result, number):
    closed = result["cases"][number]["rows"]["closed form"]
    assert closed["spearman_lowest"] > 0.97
    assert closed["overlap"]["0.25"] > 0.85
    assert closed["overlap"]["0.11"] > 0.75


def test_another_set_of_directions_agrees_no_better_on_real_pictures(result):
    rows = result["cases"][0]["rows"]
    assert rows["closed form"]["spearman"] > rows["other directions"]["spearman"]


def test_the_norm_is_no_substitute_on_real_pictures(result):
    assert result["cases"][0]["rows"]["norm"]["spearman"] < 0.5


def test_the_table_has_a_row_for_every_case_and_estimator(result):
    text = sensitivity.table(json.loads(json.dumps(result)))
    assert text.count("| closed form |") == 3
    assert text.count("| norm |") == 3


def test_rank_correlation():
    a = torch.tensor([[1.0, 2.0, 3.0, 10.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 4.0, 3.0]])
    assert sensitivity.spearman(a, torch.arange(4.0).expand(3, 4)) == pytest.approx([1.0, -1.0, 0.8])

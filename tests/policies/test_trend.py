import json

import numpy as np
import pytest
import torch

from tokenprune.errors import InvalidArgumentError
from tokenprune.policies.published_trends import BENCHMARKS, RATES
from tokenprune.policies.trend import Trend

CUBIC = Trend(kind="cubic", coefficients=(1.7, -4.8, 4.9))


def test_weights_are_the_trend_at_the_first_token_over_that_at_each():
    place = torch.tensor([[0, 3, 10], [1, 2, 5]])
    x = place.double().numpy() / 10
    exponential = Trend(coefficients=(1.5,)).weights(place, 11)
    assert exponential.dtype == torch.float32
    np.testing.assert_allclose(exponential, np.exp(-1.5 * x), rtol=1e-6)
    np.testing.assert_allclose(CUBIC.weights(place, 11), 1 / (1 + 1.7 * x - 4.8 * x**2 + 4.9 * x**3), rtol=1e-6)


def test_one_trend_holds_for_units_of_any_size():
    ends = [Trend(coefficients=(2.0,)).weights(torch.tensor([[0, n - 1]]), n) for n in (2, 64, 576)]
    for one in ends:
        np.testing.assert_allclose(one, [[1.0, np.exp(-2.0)]], rtol=1e-6)
    assert Trend(coefficients=(2.0,)).weights(torch.zeros(1, 1).long(), 1).tolist() == [[1.0]]


def test_published_rates_are_per_token_of_576():
    b = Trend.published("pyramiddrop", "pope").coefficients[0]
    assert b / 575 == pytest.approx(4.050629e-3)
    means = {"himap": 1.8630, "pyramiddrop": 3.2808, "sparsevlm": 3.3764, "tokencarve": 1.4444}
    for method, mean in means.items():
        assert Trend.published(method).coefficients[0] * 1000 / 575 == pytest.approx(mean, abs=6e-5)
        assert len(RATES[method]) == len(BENCHMARKS) == 10
    last = Trend.published("fastv").weights(torch.tensor([[575]]), 576)
    assert float(1 / last) == pytest.approx(2.79, abs=0.005)


@pytest.mark.parametrize("trend", [Trend(coefficients=(-0.25,), facts={"samples": 3}), CUBIC], ids=str)
def test_what_is_saved_is_loaded(trend, tmp_path):
    trend.save(tmp_path / "trend.json")
    assert Trend.load(tmp_path / "trend.json") == trend
    assert json.loads((tmp_path / "trend.json").read_text())["kind"] == trend.kind


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is no file that holds a trend"),
        ("{", "is no file that holds a trend"),
        ("[1, 2]", "is no file that holds a trend"),
        ("{}", "coefficients"),
        ('{"coefficients": [1], "shape": 2}', "shape"),
        ('{"coefficients": [1], "facts": 3}', "is no file that holds a trend"),
        ('{"coefficients": [1], "kind": "line"}', r"holds no trend \(kind='line' is not one of exponential, cubic"),
        ('{"coefficients": [1, 2]}', "holds no trend .*are not 1 number"),
        ('{"coefficients": ["1"]}', "holds no trend"),
        ('{"coefficients": [NaN]}', "holds no trend"),
        ('{"coefficients": 1.5}', "holds no trend"),
        ('{"coefficients": [-4, 2, 0], "kind": "cubic"}', "holds no trend .* falls to -1"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "trend.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        Trend.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("coefficients", "low"), [((-4.0, 2.0, 0.0), -1.0), ((0.0, -3.0, 1.9), -0.1), ((-6.0, 9.0, -3.0), -0.1547)]
)
def test_a_cubic_has_to_stay_above_zero(coefficients, low):
    x = np.linspace(0, 1, 100001)
    c1, c2, c3 = coefficients
    assert min(1 + c1 * x + c2 * x**2 + c3 * x**3) == pytest.approx(low, abs=1e-4)
    with pytest.raises(InvalidArgumentError, match=f"falls to {low:.3g}"):
        Trend(kind="cubic", coefficients=coefficients)
    Trend(kind="cubic", coefficients=tuple(0.4 * c for c in coefficients))


def test_what_was_not_published_is_named():
    with pytest.raises(InvalidArgumentError, match="no curve of 'adaptinfer', only of fastv, himap, pyramiddrop, "):
        Trend.published("adaptinfer")
    with pytest.raises(InvalidArgumentError, match=r"benchmark='gpa' is not one of .*did you mean 'gqa'"):
        Trend.published("himap", "gpa")

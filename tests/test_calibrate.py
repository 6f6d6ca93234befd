import json
from types import SimpleNamespace

import pytest
import torch

from tests.families import IMAGE, LLAVA
from tests.families.base import noise
from tokenprune import wrap
from tokenprune.calibrate import change_points, detect_schedule, fit_cubic, fit_exponential, fit_trend, schedule
from tokenprune.calibrate.trend import Profile
from tokenprune.errors import InvalidArgumentError, InvalidFeaturesError
from tokenprune.policies.adaptinfer import AdaptInfer
from tokenprune.policies.debias import debiased
from tokenprune.policies.fastv import FastV
from tokenprune.policies.layer_random import RandomLayers

N = 36  # tokens of a picture of the tiny model
BIAS = 2.5

pytestmark = pytest.mark.filterwarnings("ignore:a trend fitted to")


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("b", [-4.0, -0.3, 0.0, 1.25, 7.0])
def test_an_exact_exponential_is_found(b):
    x = torch.linspace(0, 1, 50).double()
    (found,), r2 = fit_exponential(x, 3.7 * torch.exp(b * x), torch.ones(50).double())
    assert found == pytest.approx(b, abs=1e-6)
    assert r2 == pytest.approx(1.0)


def test_least_squares_are_of_values_not_of_logarithms():
    x, draws = torch.linspace(0, 1, 40).double(), generator(0)
    y, weight = torch.rand(40, generator=draws).double(), torch.rand(40, generator=draws).double()
    (b,), r2 = fit_exponential(x, y, weight)

    def loss(a, b):
        return float((weight * (y - a * torch.exp(b * x)) ** 2).sum())

    shape = torch.exp(b * x)
    a = float((weight * y * shape).sum() / (weight * shape**2).sum())
    for da, db in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, -1e-3), (-1e-3, 1e-3)):
        assert loss(a, b) < loss(a + da, b + db)
    mean = float((weight * y).sum() / weight.sum())
    assert r2 == pytest.approx(1 - loss(a, b) / loss(mean, 0.0))


def test_an_exact_cubic_is_found():
    x = torch.linspace(0, 1, 20).double()
    found, r2 = fit_cubic(x, 2 * (1 + 1.7 * x - 4.8 * x**2 + 4.9 * x**3), torch.linspace(1, 3, 20).double())
    assert found == pytest.approx((1.7, -4.8, 4.9), abs=1e-8)
    assert r2 == pytest.approx(1.0)


def test_units_of_all_sizes_count_the_same_and_attention_in_all_does_not_matter():
    """Shares of one unit are ten times those of another, and it is larger: neither makes it weigh more."""
    x = [torch.arange(n).double() / (n - 1) for n in (201, 2010)]
    rates, scales = (1.0, 3.0), (0.02, 0.2)
    profile = Profile()
    for one, b, scale in zip(x, rates, scales, strict=True):
        profile.add((scale * torch.exp(b * one))[None].float(), torch.arange(len(one))[None], len(one))
    (found,), _ = fit_exponential(*profile.points())
    dense = torch.linspace(0, 1, 2001).double()
    together = sum(torch.exp(b * dense) / torch.exp(b * dense).mean() for b in rates) / 2
    (expected,), _ = fit_exponential(dense, together, torch.ones(2001).double())
    assert found == pytest.approx(expected, rel=0.01)
    assert profile.units == 2


def test_tokens_not_shown_do_not_count():
    scores = torch.exp(2.0 * torch.arange(30) / 29)[None].repeat(4, 1)
    shown = torch.rand(4, 30, generator=generator(1)) < 0.6
    spoiled, profile = torch.where(shown, scores, 100.0), Profile()
    place = torch.arange(30).expand(4, 30)
    for part in (slice(0, 1), slice(1, 4)):
        profile.add(spoiled[part], place[part], 30, shown[part])
    (found,), _ = fit_exponential(*profile.points())
    assert found == pytest.approx(2.0, abs=0.15)  # every unit is divided by the mean of what it shows


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_scores_that_are_no_shares_are_refused(bad):
    scores = torch.ones(1, 5)
    scores[0, 3] = bad
    with pytest.raises(InvalidFeaturesError, match="negative or not finite"):
        Profile().add(scores, torch.arange(5)[None], 5)


def test_a_unit_without_attention_and_a_picture_of_one_token_say_nothing():
    profile = Profile()
    with pytest.raises(InvalidArgumentError, match="hold no visual token"):
        profile.points()
    profile.add(torch.zeros(2, 5), torch.arange(5).expand(2, 5), 5)
    assert profile.units == 0
    with pytest.raises(InvalidArgumentError, match="hold no visual token"):
        profile.points()
    profile.add(torch.ones(1, 1), torch.zeros(1, 1).long(), 1)
    with pytest.raises(InvalidArgumentError, match="1 different places, and a trend takes 2"):
        fit_exponential(*profile.points())


# On a model. Its last decoder layer but two gets queries and keys that the test makes.


def plant(model, layer, bias, where=slice(None)):
    """Adds bias * x, x = place of a token in its picture, to a layer's attention logits; returns what undoes it.

    In all heads the same: of the queries and keys of head 0 only what the rotary embedding hardly turns over a prompt,
    so that attention does not depend on places; where it turns slowest, queries have a 1 and keys the bias.
    """
    attention = model.model.language_model.layers[layer].self_attn
    d, seen, grown = attention.head_dim, {}, torch.zeros(N)
    grown[where] = bias * torch.linspace(0, 1, N)[where]

    def ids(module, args, kwargs):
        seen["visual"] = kwargs["input_ids"] == IMAGE

    def heads(module, args, output, is_key):
        b, length, width = output.shape
        rows = output.view(b, length, width // d, d)[:, :, :1].clone()
        rows[..., [i for i in range(d) if i % (d // 2) not in (d // 2 - 3, d // 2 - 2)]] = 0
        if is_key:
            place = (seen["visual"].cumsum(1) - 1) % N
            rows[:, :, 0, d // 2 - 1] = seen["visual"] * grown[place] * d**0.5
        else:
            rows[..., d // 2 - 1] = 1
        return rows.expand(b, length, width // d, d).reshape(b, length, width)

    hooks = [model.model.register_forward_pre_hook(ids, with_kwargs=True)]
    for projection, is_key in ((attention.q_proj, False), (attention.k_proj, True)):
        hooks.append(projection.register_forward_hook(lambda *given, is_key=is_key: heads(*given, is_key)))
    return lambda: [hook.remove() for hook in hooks]


def prompts(count, *, seed=0, images=(1, 1)):
    """Batches whose pictures have one texture in a random half of their 6 x 6 patches, and another in the rest."""
    textures = noise(2, 3, 4, 4)
    for i in range(count):
        inputs, draws = LLAVA.inputs(images, seed=seed + i), generator(1000 + seed + i)
        which = torch.stack([(torch.randperm(N, generator=draws) < N // 2).long() for _ in range(sum(images))])
        pixels = textures[which].view(-1, 6, 6, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 24, 24)
        yield {**inputs, "pixel_values": pixels + 0.02 * torch.randn(pixels.shape, generator=draws)}


def kept(model, policy, inputs):
    with wrap(model, policy) as handle, torch.no_grad():
        model(**inputs)
        return [unit.indices.tolist() for unit in handle.report().units]


@pytest.fixture
def model():
    """Its tower does not tell places apart: scores have no trend of their own."""
    model = LLAVA.model()
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight.zero_()
    return model


def test_a_planted_bias_is_found_and_debiasing_takes_the_choice_back(model):
    """The whole way: fit on some prompts, prune others, each with half of its tokens clearly ahead of the rest."""
    policy = FastV(layer=1, keep=N // 2)

    def choices(one):
        return [kept(model, one, inputs) for inputs in prompts(5, seed=500)]

    undo = plant(model, 0, 0.0)
    unbiased = choices(policy)
    undo()
    plant(model, 0, BIAS)
    trend = fit_trend(model, policy, prompts(60))
    assert trend.coefficients[0] == pytest.approx(BIAS, rel=0.03)
    assert trend.facts["samples"] == 120
    assert trend.facts["r2"] > 0.99
    pairs = [
        (set(a), set(b)) for x, y in zip(choices(policy), unbiased, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert all(a != b for a, b in pairs)
    assert choices(debiased(policy, trend=trend)) == unbiased


def test_fitting_prunes_nothing_and_gives_the_model_back(model):
    (inputs,) = prompts(1)
    with torch.no_grad():
        before = model(**inputs).logits
        fit_trend(model, "fastv", [inputs])
        assert torch.equal(model(**inputs).logits, before)


def test_few_samples_are_warned_about(model):
    with pytest.warns(UserWarning, match="fitted to 4 units is rough: give at least 500"):
        fit_trend(model, FastV(), prompts(2))


def test_sizes_leave_out_padding(model):
    """Attention grows over the padded rows only: 0, 1, 4 and 5 of the 6."""
    size = (300, 100)
    some = [(inputs, [size, size]) for inputs in prompts(30)]
    plant(model, 0, BIAS, where=torch.arange(N).view(6, 6)[[0, 1, 4, 5]].flatten())
    policy = FastV(layer=1)
    assert fit_trend(model, policy, some).coefficients[0] > 1
    assert abs(fit_trend(model, policy, some, padding="area").coefficients[0]) < 0.2
    with pytest.raises(InvalidArgumentError, match="set handle.image_sizes"):
        fit_trend(model, FastV(), prompts(1), padding="area")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: fit_trend(model, "divprune", prompts(1)), "is no policy at stage 'layer'"),
        (lambda model: fit_trend(model, RandomLayers(), prompts(1)), "'random-layers' looks at no attention"),
        (lambda model: fit_trend(model, "fastv", prompts(1), kind="line"), "kind='line' is not one of exponential"),
        (lambda model: fit_trend(model, "fastv", prompts(1), padding="all"), "padding='all' is not one of"),
        (lambda model: fit_trend(model, "fastv", []), "batches hold no visual token"),
        (lambda model: fit_trend(model, FastV(layer=9), prompts(1)), "layer=9 is layer 9 of a decoder with 4 layers"),
        (lambda model: detect_schedule(model, prompts(1), drops=0), "drops=0 is not an int of at least 1"),
        (lambda model: detect_schedule(model, prompts(1), drops=3), "drops=3 are too many for a decoder with 4 layers"),
        (lambda model: detect_schedule(model, prompts(1), coverage=90), r"coverage=90 is not in \(0, 1\]"),
        (lambda model: detect_schedule(model, [], drops=1), "batches hold no prompt with both a picture and text"),
    ],
)
def test_bad_values_are_named(model, make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        make(model)
    assert not model.model._forward_pre_hooks


def curve(*pieces, noise=0.0, seed=0):
    """Cumulative sum of slopes: (steps, slope) pieces."""
    slopes = torch.tensor([slope for steps, slope in pieces for _ in range(steps)]).double()
    slopes = slopes + noise * torch.randn(len(slopes), generator=generator(seed)).double()
    return [0.0, *slopes.cumsum(0).tolist()]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (((2, 0.6), (9, 0.3), (10, 0.15), (11, 0.05)), [2, 11, 21]),  # falls, as in LLaVA-1.5: l = 1, 10, 20
        (((10, 0.1), (10, 0.4), (12, 0.1)), [10, 20]),  # rises and falls
        (((40, 0.1), (60, 0.2)), [40]),
        (((2, 0.3), (2, 0.1)), [2]),
    ],
)
def test_kinks_of_a_curve_are_found(pieces, expected):
    assert change_points(curve(*pieces), len(expected)) == expected
    assert change_points([3 * y + 0.5 * i for i, y in enumerate(curve(*pieces))], len(expected)) == expected
    if len(curve(*pieces)) > 10:
        assert change_points(curve(*pieces, noise=0.004), len(expected)) == expected


def test_change_points_are_the_best_of_all():
    """Against every choice of two places, by a fit of its own."""
    y = curve((14, 0.0), noise=1.0)

    def error(i, j):
        x = torch.stack([torch.ones(j - i + 1), torch.arange(i, j + 1)], 1).double()
        part = torch.tensor(y[i : j + 1]).double()[:, None]
        return float(((part - x @ torch.linalg.lstsq(x, part).solution) ** 2).sum())

    pairs = [(i, j) for i in range(2, 13) for j in range(i + 2, 13)]
    best = min(pairs, key=lambda pair: error(0, pair[0]) + error(*pair) + error(pair[1], 14))
    assert change_points(y, 2) == list(best)


def test_short_curves():
    assert change_points([0.0, 1.0, 1.5, 1.6], 2) == [1, 2]
    with pytest.raises(InvalidArgumentError, match="count=3 change points are too many for a curve of 3 steps"):
        change_points([0.0, 1.0, 1.5, 1.6], 3)


def text_to_vision(model, inputs):
    """Per layer and prompt, attention [V] of words to visual tokens, from the model's own maps."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    ids, found = inputs["input_ids"], []
    for layer in maps[:-1]:
        for b, row in enumerate(ids):
            places = (row == IMAGE).nonzero().flatten()
            if len(places):
                found.append(layer[b, :, places[-1] + 1 :][..., places].mean((0, 1)))
    return found


def test_a_schedule_is_what_the_maps_of_the_model_say(model, tmp_path):
    batches = list(prompts(3, images=(1, 2, 0)))
    found = detect_schedule(model, batches, drops=1, coverage=0.8)
    rows = [text_to_vision(model, inputs) for inputs in batches]
    masses = [[float(row.sum()) for row in batch] for batch in rows]
    expected = [sum(batch[2 * i] + batch[2 * i + 1] for batch in masses) / 6 for i in range(3)]
    assert found["curve"] == pytest.approx(expected, abs=1e-5)
    shares = []
    for row in (row for batch in rows for row in batch[2 * found["layers"][0] :][:2]):
        ranked = row.sort(descending=True).values
        need = next(k for k in range(1, len(row) + 1) if float(ranked[:k].sum()) >= 0.8 * float(row.sum()))
        shares.append(need / len(row))
    assert found["keeps"] == pytest.approx([sum(shares) / 6], abs=1e-4)
    assert (found["model_type"], found["depth"], found["samples"]) == ("llava", 4, 6)
    (tmp_path / "schedule.json").write_text(json.dumps(found))
    policy = AdaptInfer.from_schedule(tmp_path / "schedule.json")
    with wrap(model, policy) as handle, torch.no_grad():
        model(**batches[0])
        (outcome,) = {len(unit.indices) for unit in handle.report().units}
    assert outcome == int(found["keeps"][0] * N)


def test_layers_and_shares_of_planted_attention(monkeypatch):
    """Words look much at the picture in layers 0 and 1, less up to 9, less still up to 19, and hardly behind."""
    masses = [0.6] * 2 + [0.3] * 8 + [0.15] * 10 + [0.02] * 11
    shares = [0.9 - 0.02 * layer for layer in range(31)]
    shares[19] = 0.8  # more than an earlier drop leaves

    def planted(model, policy, batches):
        assert [(one.score, one.drop, one.rows) for one in policy.events(32)] == [(i, i + 1, "text") for i in range(31)]
        for layer, (mass, share) in enumerate(zip(masses, shares, strict=True)):
            policy.note(layer, [(mass + 0.05, share), (mass - 0.05, share)])

    monkeypatch.setattr(schedule, "watch", planted)
    found = detect_schedule(SimpleNamespace(config=SimpleNamespace(model_type="some")), [], drops=3)
    assert found["layers"] == [1, 9, 19]  # the last of each stretch: tokens leave the input of the layer behind
    assert found["keeps"] == pytest.approx([shares[1], shares[9], shares[9]])
    assert found["curve"] == pytest.approx(masses)
    assert (found["samples"], found["depth"], found["model_type"]) == (2, 32, "some")

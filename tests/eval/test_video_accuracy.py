"""What is measured about clips: ready-made encodings change nothing, rows are complete, runs go on, tables tell."""

import json

import pytest
import torch

from tests.eval.video_checkpoint import saved_video_model
from tokenprune import DecoderShape, get_policy, mean_share
from tokenprune.eval import shapes, video_accuracy, video_pareto, video_weights
from tokenprune.eval.asking import Pruned, Way
from tokenprune.eval.training_free import training_free
from tokenprune.eval.video_asking import PIXELS, check_against_generate, encoded
from tokenprune.eval.video_rows import KEEPS, RANDOM, video_rows

SHAPE = DecoderShape(layers=4, hidden=24, intermediate=48, query=24, key_value=24, dtype_bytes=4)
ROWS = video_rows(2)
SOME = ("random", "uniform-frames", "evs", "holitom", "random-layers", "framefusion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("torchvision")
    return saved_video_model(tmp_path_factory.mktemp("tiny_video"))


@pytest.fixture(scope="module")
def tiny(folder):
    return shapes.load_video(folder=folder)


@pytest.fixture(scope="module")
def batch(tiny):
    policies = [get_policy(name)() for name in ("holitom", "evs")]
    with torch.inference_mode():
        return next(encoded(*tiny, list(shapes.held_out_clips(3)), policies))


@torch.inference_mode()
@pytest.mark.parametrize("name", [None, "evs", "holitom", "fastervlm", "random"])
def test_encoded_clips_are_read_as_pixels_are(tiny, batch, name):
    model, _ = tiny
    ways = Way(*tiny) if name is None else Pruned(*tiny, get_policy(name)())
    seen = []
    for arguments in (ways.given, ways.encoded):
        with ways.at(0.1, batch):
            given = arguments(batch, 0.1)
            logits = model(**given, logits_to_keep=1).logits
            kept = None if name is None else torch.stack([unit.indices for unit in ways.report().units])
        seen.append((logits, kept))
    assert PIXELS not in given
    torch.testing.assert_close(seen[0][0], seen[1][0], atol=1e-5, rtol=1e-5)
    if name is not None:
        assert torch.equal(seen[0][1], seen[1][1])
        assert seen[0][1].shape == (3, 51)


@torch.inference_mode()
def test_clips_are_encoded_once_for_all_policies_whose_needs_were_told(tiny, batch, monkeypatch):
    calls, method = [], type(tiny[0].model).get_video_features
    monkeypatch.setattr(
        type(tiny[0].model), "get_video_features", lambda self, *a, **k: calls.append(1) or method(self, *a, **k)
    )
    for name, expected in (("evs", 0), ("holitom", 0), ("fastervlm", 1)):
        ways = Pruned(*tiny, get_policy(name)())
        for keep in KEEPS:
            with ways.at(keep, batch):
                ways.words(ways.encoded(batch, keep))
        assert len(calls) == expected, name


@torch.inference_mode()
def test_the_short_cut_is_compared_with_generate(tiny, batch, monkeypatch):
    check_against_generate(*tiny, batch)
    monkeypatch.setattr(Way, "words", lambda self, arguments: torch.zeros(3, dtype=torch.long))
    with pytest.raises(RuntimeError, match="not the first word"):
        check_against_generate(*tiny, batch)


def test_every_policy_that_compares_frames_has_its_rows():
    known = training_free()
    on_videos = {name for name, cls in known.items() if "video" in cls.kinds and "image" not in cls.kinds}
    assert on_videos <= {row.name for row in ROWS.values()}
    for name in on_videos:
        if known[name].stage == "projector":
            assert {name} <= set(ROWS)
            assert {f"{name}, original", f"{name}, compact"} & set(ROWS)
    assert [one.seed for one in ROWS[RANDOM].policies] == [0, 1]
    for name, row in ROWS.items():
        for other in row.against.values():
            assert set(row.keeps) <= set(ROWS[other].keeps), f"{name} has nothing to be compared with"


@pytest.mark.parametrize("keep", KEEPS)
def test_framefusion_reads_the_budget_on_average_over_the_layers(keep):
    (row,) = ROWS["framefusion"].policies
    (policy,) = row.policies(keep, SHAPE, 512)
    assert mean_share(policy, 4, 512) <= keep < mean_share(policy, 4, 512) + 0.01
    first, merged, left = row.counts(keep, SHAPE, 512)
    assert first == 512 > merged > left == policy.keep
    (strict,) = ROWS["framefusion, strict"].policies
    assert strict.policies(keep, SHAPE, 512)[0].target_cost == keep


@pytest.fixture
def command(folder, tmp_path, monkeypatch):
    """Runs the command with some options on the tiny model and gives back what it wrote."""
    load = shapes.load_video
    monkeypatch.setattr(shapes, "load_video", lambda: load(folder=folder), raising=False)
    monkeypatch.setattr(shapes, "VIDEO_CHECKPOINT", folder, raising=False)
    always = ["video_accuracy", "--clips", "5", "--seeds", "2", "--out", str(tmp_path)]

    def run(*options):
        monkeypatch.setattr("sys.argv", [*always, *options])
        video_accuracy.main()
        return json.loads((tmp_path / "video_accuracy.json").read_text())

    return run


def test_the_command_writes_json_tables_and_a_plot_and_goes_on(command, tmp_path, monkeypatch, capsys):
    first = command(*(word for name in SOME for word in ("--row", name)))
    cells = {(cell["row"], cell["keep"]): cell for cell in first["rows"]}
    assert {cell["policy"] for cell in first["rows"]} == {"dense", *SOME}
    assert cells["dense", 1.0]["tokens"] == 512
    assert cells["evs", 0.1]["tokens"] == 51
    assert cells["evs, strict", 0.1]["tokens"] == 64, "never less than the first frame"
    assert set(cells["evs", 0.1]["sets"]["clips"]) >= {"over_random", "over_frames"}
    assert set(cells["evs, compact", 0.1]["sets"]["clips"]) >= {"over_random", "over_own"}
    assert "over_front" in cells["holitom + random-layers", 0.1]["sets"]["clips"]
    assert cells["framefusion", 0.1]["tokens"] <= 51.2
    assert 0 < cells["holitom + random-layers", 0.1]["flops"] <= cells["holitom + random-layers", 0.1]["flops_in_front"]
    for cell in first["rows"]:
        figure = cell["sets"]["clips"]
        assert figure["asked"] == sum(kind["asked"] for kind in figure["by_kind"].values()) == 5
    markdown = (tmp_path / "video_accuracy.md").read_text()
    assert "| exactly that share of the tokens | 50% (256) | 25% (128) | 10% (51) |" in markdown
    assert "(12.5%) |" in next(line for line in markdown.splitlines() if line.startswith("| evs, strict |"))
    assert "\n| 10% | before (1) | " in markdown
    assert (tmp_path / "video_accuracy.png").stat().st_size > 10_000
    assert "evs" in capsys.readouterr().out

    asked, real = [], video_accuracy._cells
    monkeypatch.setattr(video_accuracy, "_cells", lambda name, *rest: asked.append(name) or real(name, *rest))
    assert command("--row", "evs")["rows"] == first["rows"]
    assert asked == []
    assert len(command("--row", "vidcom2, strict")["rows"]) == len(first["rows"]) + 3
    assert asked == ["vidcom2, strict"]
    command("--clips", "6", "--row", "evs, strict")
    assert asked == ["vidcom2, strict", "dense", "evs, strict"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--clips", "0"], "--clips 0 is below 1"),
        (["--row", "prunvid"], "--row prunvid is none: rows are "),
        (["--plot-only", "--out", "nowhere"], "--plot-only needs nowhere/video_accuracy.json"),
    ],
)
def test_bad_options_get_a_sentence(monkeypatch, capsys, options, told):
    monkeypatch.setattr("sys.argv", ["video_accuracy", *options])
    with pytest.raises(SystemExit) as caught:
        video_accuracy.main()
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_verdicts_against_random_and_frames_are_told_apart():
    def over(low, high):
        return {"mean": 0, "low": low, "high": high}

    figure = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "over_random": over(0.1, 0.2), "over_frames": over(-0.2, -0.1)}
    cell = {"sets": {"clips": figure}, "tokens": 32}
    assert video_pareto._text(cell, "exact", 512, 0.9) == "50.0 ± 10.0 + ↓"
    assert video_pareto._text(cell, "exact", 512, 0.5) == "**50.0 ± 10.0 + ↓**"
    assert video_pareto._text(cell, "strict", 512, 0.5) == "50.0 ± 10.0 + ↓ (6.2%)"
    own = {**figure, "over_random": over(-0.1, 0.1), "over_own": over(0.1, 0.2)}
    assert video_pareto._text({**cell, "sets": {"clips": own}, "flops": 0.3}, "positions", 512, 1) == (
        "50.0 ± 10.0 ↑ (30.0%)"
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", ["evs", "holitom"])
def test_tokens_that_leave_by_hand_give_the_words_of_the_hooks(tiny, batch, name):
    model, processor = tiny
    policy, seen = get_policy(name)(), []
    ways = Pruned(model, processor, policy)
    with ways.at(0.1, batch):
        expected = model(**ways.encoded(batch, 0.1), logits_to_keep=1).logits[:, -1]
    kept = video_weights.kept_tokens(model, processor, policy, batch, 0.1)
    compact = policy.positions == "compact"
    noted = model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out))
    for i, one in enumerate(kept):
        for weighted, positions in ((False, compact), (True, compact), (False, not compact)):
            video_weights.first_word(model, batch, i, one, weighted=weighted, compact=positions)
    noted.remove()
    torch.testing.assert_close(torch.stack(seen[::3]), expected, atol=1e-5, rtol=1e-4)
    for other in (1, 2):
        assert (torch.stack(seen[other::3]) - expected).abs().max() > 1e-4

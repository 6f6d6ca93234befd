"""The parts of `demos/app.py`, without a browser."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "demos"))

pytest.importorskip("gradio", reason="needs gradio: pip install 'tokenprune-vlm[demo]'")

import app
from studio import controls, front, pictures, uploads
from studio.asking import PARTS, Answer, Asker, Question
from typer.testing import CliRunner

import tokenprune
from tokenprune.errors import InputError, InvalidArgumentError
from tokenprune.eval import shapes

SAMPLES = shapes.CHECKPOINT.parent / "samples"


@pytest.fixture(scope="module")
def asker():
    return Asker()


@pytest.fixture(scope="module")
def picture():
    return uploads.read(str(SAMPLES / "scene-10001.png"), 8)


@pytest.fixture(scope="module")
def clip():
    return uploads.read(str(SAMPLES / "clip-10057.mp4"), 8)


def answered(asker, given, text, ways, model="embedded"):
    """The last word on each way."""
    return dict(asker.ask(Question(given, text, model, 8), ways))


def test_it_listens_on_this_machine_alone_unless_told_otherwise(monkeypatch):
    launched = []
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **options: launched.append(options))
    for arguments in ([], ["--host", "0.0.0.0", "--port", "7999", "--share"]):
        assert CliRunner().invoke(app.app, arguments).exit_code == 0
    assert [(one["server_name"], one["server_port"], one["share"]) for one in launched] == [
        ("127.0.0.1", None, False),
        ("0.0.0.0", 7999, True),
    ]
    assert launched[0]["max_file_size"] == uploads.MEGABYTES * 2**20


def test_a_file_that_is_too_large_is_refused(tmp_path):
    with (tmp_path / "large.mp4").open("wb") as file:
        file.truncate((uploads.MEGABYTES << 20) + 1)
    with pytest.raises(InputError, match=r"^file='large.mp4' is larger than 50 MB"):
        uploads.read(str(tmp_path / "large.mp4"), 8)


def test_no_more_frames_are_read_than_the_limit(clip):
    assert len(clip.frames) == 8
    assert len(uploads.read(str(SAMPLES / "clip-10057.mp4"), 10**6).frames) <= uploads.FRAMES


def test_a_gif_that_moves_is_a_video_and_one_that_does_not_a_picture(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "still.gif")
    assert uploads.read(str(tmp_path / "still.gif"), 4).pictures
    assert uploads.read(str(SAMPLES / "clip-10030.gif"), 4).videos


@pytest.mark.parametrize("name", [name for stage in controls.STAGES for name in controls.names(stage)])
def test_controls_left_alone_make_the_policy_as_it_is(name):
    made = controls.knobs(name)
    chosen = controls.policy(name, 25, [knob.start for knob in made], made)
    assert chosen == tokenprune.get_policy(name)(keep=0.25, **controls.START.get(name, {}))


def test_controls_set_fields():
    made = controls.knobs("pyramiddrop")
    shown = [{"layers": "(1, 3)", "keeps": "[0.5, 0.1]"}.get(knob.name, knob.start) for knob in made]
    assert controls.policy("pyramiddrop", 25, shown, made) == tokenprune.PyramidDrop(layers=(1, 3), keeps=[0.5, 0.1])
    made = controls.knobs("zooprune")
    shown = [{"estimator": "norm", "h": 1, "m": 8}.get(knob.name, knob.start) for knob in made]
    chosen = controls.policy("zooprune", 50, shown, made)
    assert chosen == tokenprune.ZooPrune(keep=0.5, estimator="norm", h=1.0, m=8)
    assert isinstance(chosen.h, float)


def test_a_control_without_a_value_leaves_the_field_as_it_is():
    made = controls.knobs("cdpruner")
    assert controls.policy("cdpruner", 10, [" " if k.kind == "text" else None for k in made], made).theta is None


def test_every_field_that_can_be_written_has_a_control():
    assert [knob.name for knob in controls.knobs("cdpruner")] == ["features", "theta", *controls.COMMON[1:]]
    kinds = {knob.name: knob.kind for name in ("vidcom2", "zooprune", "fastv") for knob in controls.knobs(name)}
    assert {"strict_paper": "switch", "m": "whole", "h": "number", "estimator": "choice", "layer": "text"}.items() <= (
        kinds.items()
    )
    assert all(knob.meaning for name in controls.names("layer") for knob in controls.knobs(name))


def test_an_answer_is_that_of_the_library(asker, picture):
    text = "what shape is the orange object?"
    found = answered(asker, picture, text, {"dense": [], "pruned": [tokenprune.FastV(layer=2, keep=0.11)]})
    assert [one.text for one in found.values()] == ["ring", "ring"]
    assert (found["dense"].report, found["pruned"].report.kept, found["pruned"].report.total) == (None, 28, 256)
    assert set(found["pruned"].ms) == set(PARTS)
    assert all(ms > 0 for ms in found["pruned"].ms.values())
    assert found["dense"].ms["selection"] == 0
    assert found["dense"].rate > 0


def test_answers_grow(asker, picture):
    found = list(asker.ask(Question(picture, "what shape is the orange object?", "embedded", 8), {"dense": []}))
    texts = [answer.text for _, answer in found]
    assert texts[0] == ""
    assert texts[-1] == "ring"
    assert [bool(answer.ms) for _, answer in found] == [False] * (len(found) - 1) + [True]


def test_scores_are_those_that_tokens_were_chosen_by(asker, picture):
    for policy in (tokenprune.Norm(keep=0.25), tokenprune.FastV(layer=2, keep=0.25)):
        one = answered(asker, picture, "how many objects are there?", {"pruned": [policy]})["pruned"]
        kept = one.report.units[0].indices
        assert one.scores.shape == (256,)
        assert set(one.scores.topk(64).indices.tolist()) == set(kept.tolist())
        assert pictures.scores(picture, one).whole.size == (640, 640)


def test_tokens_that_had_left_before_have_no_score(asker, picture):
    policies = [tokenprune.Uniform(keep=0.5), tokenprune.FastV(layer=2, keep=0.25)]
    one = answered(asker, picture, "how many objects are there?", {"pruned": policies})["pruned"]
    assert int(torch.isnan(one.scores).sum()) == 128
    assert not torch.isnan(one.scores[one.report.units[0].indices]).any()


def test_a_way_that_cannot_be_gone_says_so_and_the_others_are(asker, clip):
    ways = {"trained": [controls.policy("covipal", 25)], "uniform": [tokenprune.Uniform(keep=0.25)]}
    found = answered(asker, clip, "which way does the purple circle move?", ways)
    assert "covipal" in found["trained"].error
    assert (found["uniform"].error, found["uniform"].report.kept) == ("", 128)


def test_who_stops_reading_frees_the_model(asker, picture):
    question = Question(picture, "how many objects are there?", "embedded", 8)
    reading = asker.ask(question, {"pruned": [tokenprune.Random(keep=0.5)]})
    next(reading)
    reading.close()
    found = answered(asker, picture, "how many objects are there?", {"dense": []})
    assert found["dense"].text == "five"
    model, _ = asker._models.get("embedded", video=False)
    assert "get_image_features" not in vars(model.model)
    tokenprune.wrap(model, "none").remove()


@pytest.mark.parametrize(
    ("model", "words"),
    [("", "The model has no name"), ("no/such", "neither a folder here"), (str(SAMPLES), "no loadable checkpoint")],
)
def test_a_model_that_cannot_be_loaded_is_a_sentence(asker, picture, model, words):
    with pytest.raises(InputError, match=words):
        answered(asker, picture, "how many?", {"dense": []}, model)


def test_an_empty_question_is_refused(picture):
    with pytest.raises(InputError, match="The question is empty"):
        Question(picture, " \n", "embedded", 8)


def test_pictures_of_a_clip_have_a_step_for_each_frame(asker, clip):
    found = answered(asker, clip, "how many objects move?", {"pruned": [tokenprune.VidCom2(keep=0.25)]})["pruned"]
    shown = pictures.kept(clip, found.report)
    assert len(shown.steps) == 8
    assert shown.whole.width > 1000
    assert len(pictures.scores(clip, found).steps) == 8


def test_regions_of_a_tower_are_drawn(asker, picture):
    found = answered(asker, picture, "how many objects are there?", {"pruned": [tokenprune.ToMe(keep=0.25)]})["pruned"]
    drawn = np.asarray(pictures.kept(picture, found.report).whole)
    assert drawn.shape == (640, 640, 3)
    assert not np.array_equal(drawn, np.asarray(Image.fromarray(picture.frames[0]).resize((640, 640))))
    assert "no number for each" in pictures.scores(picture, found).missing


def test_facts_and_bars_show_text_as_text():
    ms = {"tower": 10.0, "selection": 5.0, "prefill": 5.0, "decode": 20.0}
    report = tokenprune.Report("x", "projector", "original")
    rows = {"dense": Answer("a", ms | {"selection": 0.0}), "<b>": Answer("b", ms, report=report)}
    shown = pictures.bars(rows)
    assert "&lt;b&gt;" in shown
    assert "20.0 ms <b>0.75x</b>" in shown
    assert "width:50.00%" in shown


@pytest.mark.parametrize("name", front.SETS)
def test_committed_results_are_tables(name):
    for axis in front.axes(name):
        made = front.table(name, front.first(name), axis)
        assert set(made["policy"]) <= set(front.first(name))
        assert len(made) > 5
        assert made[front.RIGHT].between(0, 100).all()
    assert front.table(name, [], front.KEPT).empty
    assert front.dense(name) > 90


def test_a_value_that_a_policy_does_not_take_is_its_own_sentence():
    made = controls.knobs("cdpruner")
    shown = [{"theta": "warm"}.get(knob.name, knob.start) for knob in made]
    with pytest.raises(InvalidArgumentError, match=r"^theta='warm' is a str, the field takes float"):
        controls.policy("cdpruner", 25, shown, made)

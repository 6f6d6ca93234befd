import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import saved_model
from tokenprune import cli
from tokenprune.policies.adaptinfer import AdaptInfer
from tokenprune.policies.trend import Trend


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A randomly initialised copy of the embedded model with five thin decoder layers, and its processor."""
    return saved_model(tmp_path_factory.mktemp("deep"), text_layers=5)


@pytest.fixture
def train(checkpoint, tmp_path):
    """`tokenprune train` on a model, three pictures and two questions, all of which later options override."""
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for name, color in (("a.png", "navy"), ("b.jpg", "red"), ("more/c.PNG", "white")):
        Image.effect_noise((90, 60), 80).convert("RGB").point(lambda v: v // 2).save(pictures / name)
        Image.new("RGB", (90, 60), color).save(pictures / name) if name == "b.jpg" else None
    (pictures / "notes.txt").write_text("no picture")
    (tmp_path / "questions.txt").write_text("what color is the star?\n\n how many objects are there?\n")

    def invoke(command, *options):
        given = {
            "--model": checkpoint,
            "--images": pictures,
            "--prompts": tmp_path / "questions.txt",
            "--out": tmp_path / "out.json",
        }
        left = [one for name, value in given.items() if name not in options for one in (name, value)]
        arguments = ["train", command, *left, *options]
        return CliRunner().invoke(cli.app, [str(one) for one in arguments], env={"COLUMNS": "200"})

    return invoke


def assert_one_sentence(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_debias_writes_a_trend_and_says_how_well_it_fits(train, tmp_path):
    result = train("debias", "--set", "layer=3", "--policy", "fastv")
    assert result.exit_code == 0, result.output
    trend = Trend.load(tmp_path / "out.json")
    assert (trend.facts["policy"], trend.facts["model_type"], trend.facts["samples"]) == ("fastv", "llava", 3)
    assert f"exponential ({trend.coefficients[0]:.4f})" in result.stdout
    assert "3 pictures" in result.stdout
    assert "warning: a trend fitted to 3 units is rough" in result.stderr
    other = train("debias", "--out", tmp_path / "layer2.json")
    assert other.exit_code == 0
    assert Trend.load(tmp_path / "layer2.json").coefficients != trend.coefficients


def test_debias_fits_other_forms_and_leaves_out_padding(train, tmp_path):
    assert train("debias", "--kind", "cubic").exit_code == 0
    whole = Trend.load(tmp_path / "out.json")
    assert whole.kind == "cubic"
    assert train("debias", "--kind", "cubic", "--padding", "area").exit_code == 0
    assert Trend.load(tmp_path / "out.json").coefficients != whole.coefficients


def test_the_shorter_of_pictures_and_questions_is_repeated_up_to_the_limit(train, tmp_path):
    def samples(*options):
        assert train("schedule", "--drops", "1", *options).exit_code == 0
        return json.loads((tmp_path / "out.json").read_text())["samples"]

    (tmp_path / "five.txt").write_text("\n".join(f"how many objects are there {i} ?" for i in range(5)))
    assert samples() == 3
    assert samples("--prompts", tmp_path / "five.txt") == 5
    assert samples("--prompts", "what color is the star?") == 3
    assert samples("--prompts", tmp_path / "five.txt", "--limit", 4) == 4


def test_schedule_writes_what_adaptinfer_reads(train, tmp_path):
    result = train("schedule", "--drops", "2", "--coverage", "0.7")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["coverage"], found["depth"], len(found["curve"])) == (0.7, 5, 4)
    policy = AdaptInfer.from_schedule(tmp_path / "out.json")
    assert list(policy.layers) == found["layers"]
    for layer, keep in zip(found["layers"], found["keeps"], strict=True):
        assert f"layer {layer} keeps {keep:.1%}" in result.stdout


@pytest.mark.parametrize("command", ["debias", "schedule"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", "nowhere"), ["images='nowhere' is no folder"]),
        (("--prompts", " "), ["holds no question"]),
        (("--out", "no/such/folder.json"), ["out='no/such/folder.json' cannot be written"]),
        (("--model", "no/such-model"), ["model='no/such-model' is neither a folder here"]),
        (("--dtype", "float23"), ["dtype='float23'"]),
    ],
)
def test_bad_input_is_one_sentence(train, command, options, words):
    assert_one_sentence(train(command, *options), *words)


def test_bad_pictures_and_prompts_are_one_sentence(train, tmp_path):
    (tmp_path / "none").mkdir()
    assert_one_sentence(train("debias", "--images", tmp_path / "none"), "holds no picture")
    (tmp_path / "none" / "broken.png").write_text("not an image")
    assert_one_sentence(train("debias", "--images", tmp_path / "none"), "broken.png", "is not an image")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    assert_one_sentence(train("debias", "--prompts", tmp_path / "binary"), "cannot be read")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("debias", ("--policy", "divprune"), ["is no policy at stage 'layer'"]),
        ("debias", ("--policy", "fastw"), ["did you mean 'fastv'?"]),
        ("debias", ("--set", "layr=3"), ["did you mean 'layer'?"]),
        ("debias", ("--kind", "line"), ["kind='line'"]),
        ("debias", ("--padding", "all"), ["padding='all'"]),
        ("schedule", ("--drops", "9"), ["drops=9 are too many"]),
        ("schedule", ("--coverage", "2"), ["coverage=2.0 is not in (0, 1]"]),
    ],
)
def test_bad_options_are_one_sentence(train, command, options, words):
    assert_one_sentence(train(command, *options), *words)


def test_a_trained_trend_is_used_by_run(train, checkpoint, tmp_path):
    assert train("debias").exit_code == 0
    picture = tmp_path / "pictures" / "b.jpg"
    arguments = ["run", "--model", checkpoint, "--image", picture, "--prompt", "what color is the star?"]
    arguments += ["--keep", "64", "--policy", "debiased", "--set", "inner=fastv", "--max-new-tokens", "2"]
    result = CliRunner().invoke(cli.app, [str(one) for one in (*arguments, "--set", f"trend={tmp_path / 'out.json'}")])
    assert result.exit_code == 0, result.output
    assert "64/256" in result.stdout


@pytest.mark.parametrize("command", ["debias", "schedule"])
def test_help_names_every_option(train, command):
    text = CliRunner().invoke(cli.app, ["train", command, "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--model", "--images", "--prompts", "--out", "--limit", "--dtype", "--device"):
        assert option in text

import re
import shutil
from importlib.metadata import EntryPoint, entry_points

import pytest
import typer
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tokenprune import cli, command, encoding
from tokenprune.errors import InputError, InvalidArgumentError, UnsupportedModelError
from tokenprune.eval.shapes import MOTION_CHECKPOINT, VIT_CHECKPOINT
from tokenprune.registry import list_policies

QUESTION = "what color is the star?"


@pytest.fixture
def call():
    def invoke(*arguments):
        return CliRunner().invoke(cli.app, [str(one) for one in arguments], env={"COLUMNS": "200"})

    return invoke


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (90, 60), "navy").save(path)
    return path


@pytest.fixture
def run(call, tiny_checkpoint, picture):
    """`tokenprune run` on a working model, picture and question, all of which later options override."""

    def invoke(*options):
        given = {"--model": tiny_checkpoint, "--image": picture, "--prompt": QUESTION, "--max-new-tokens": 2}
        left = [one for name, value in given.items() if name not in options for one in (name, value)]
        return call("run", *left, *options)

    return invoke


def assert_one_sentence(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(".\n")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_list_names_every_policy_with_stage_needs_and_purpose(call):
    result = call("list")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[1:] if not line.startswith(" ")}
    assert sorted(rows) == list_policies()
    assert re.search(r"cdpruner +projector +features, text +Conditional diversity", rows["cdpruner"])
    assert re.search(r"uniform +projector +nothing +Tokens at evenly", rows["uniform"])
    assert re.search(r"tome +vision +keys of its blocks +Token merging", rows["tome"])
    assert re.search(r"evit +vision +attention of the class token in its blocks +The tokens", rows["evit"])
    assert re.search(r"random-blocks +vision +nothing +Uniformly", rows["random-blocks"])


def test_list_takes_a_wildcard(call):
    assert "divprune" in call("list", "div*").stdout
    assert "cdpruner" not in call("list", "div*").stdout
    assert_one_sentence(call("list", "zzz*"), "pattern='zzz*'", "divprune")


@pytest.mark.parametrize("name", list_policies())
def test_show_has_fields_stage_needs_and_cost(call, name):
    result = call("show", name)
    assert result.exit_code == 0
    for word in ("keep", "per", "rounding", "stage ", "needs ", "cost ", "when ", "limits "):
        assert word in result.stdout


def test_show_tells_formula_source_defaults_and_meaning(call):
    text = " ".join(call("show", "cdpruner").stdout.split())
    for word in ("L_ij = r_i S_ij r_j", "arXiv 2506.10967", "Differs from the released code", "TextRelevance()"):
        assert word in text
    assert re.search(r"theta +float \| None +None +None, as released", text)
    assert "[bold]" not in text


def test_show_tells_what_inherited_fields_mean_after_those_of_its_own(call):
    text = call("show", "vispruner").stdout
    assert text.index("important_ratio") < text.index("rounding")
    assert not re.search(r"(features|attention|keep|quota) +\S+ +\S+ *\n", text)
    assert "    image = Resize(keep=0.25, multiple=28).image(picture)\n" in call("show", "resize").stdout


def test_show_tells_all_of_a_meaning_that_takes_several_lines(call):
    text = " ".join(re.sub(r" {2,}", " ", line) for line in call("show", "divprune").stdout.splitlines())
    assert "row of one, P is 1." in " ".join(text.split())


def test_show_tells_when_to_use_it_and_its_limits(call):
    text = call("show", "holov").stdout
    assert re.search(r"needs +attention of the class token or received \(vision layer that is read\), features", text)
    assert re.search(r"when +Strong pruning", text)
    assert re.search(r"limits +Runs are stripes", text)
    assert "attention received (vision layer 37.5% deep)" in call("show", "hiprune").stdout


def test_show_tells_what_a_policy_inside_the_tower_reads(call):
    text = call("show", "tome").stdout
    assert re.search(r"stage +vision\nneeds +keys of its blocks\n", "\n".join(map(str.rstrip, text.splitlines())))
    assert "x_b <- sum s_i x_i / sum s_i" in text


def test_show_suggests_the_nearest_name(call):
    assert_one_sentence(call("show", "cdprunner"), "did you mean 'cdpruner'?")


@pytest.mark.parametrize(
    ("options", "report"),
    [
        (("--policy", "divprune", "--keep", "64"), "kept 64/256 (25.0 %)"),
        (("--policy", "cdpruner", "--keep", "0.11", "--set", "theta=0.5"), "kept 28/256 (10.9 %)"),
        (("--policy", "random", "--keep", "0.1", "--set", "rounding=floor", "--set", "seed=3"), "kept 25/256 (9.8 %)"),
        (("--policy", "uniform", "--keep", "9", "--positions", "compact"), "positions compact"),
        (("--policy", "pool", "--keep", "16", "--dtype", "bfloat16"), "sequence 263 -> 23"),
        (("--policy", "none"), "kept 256/256 (100.0 %)"),
        (("--policy", "tome", "--set", "r=[40]"), "216/256 patches left"),
        (("--policy", "tome", "--set", "r=40", "--restore"), "sequence 263 -> 263"),
        (("--policy", "tome", "--set", "r=40", "--no-restore"), "sequence 263 -> 223"),
    ],
)
def test_run_prints_an_answer_and_the_report(run, options, report):
    result = run(*options)
    assert result.exit_code == 0, result.output
    assert report in result.stdout
    assert result.stdout.splitlines()[0]  # the answer


def test_run_answers_as_long_as_the_model_says_unless_told(call, tiny_checkpoint, picture):
    given = ("run", "--model", tiny_checkpoint, "--image", picture, "--prompt", QUESTION)  # which says 2 tokens
    words = [len(call(*given, *more).stdout.splitlines()[0].split()) for more in ((), ("--max-new-tokens", "9"))]
    assert words[0] <= 2 < words[1]


def test_run_takes_several_images_and_a_budget_over_the_prompt(run, picture):
    result = run("--image", picture, "--image", picture, "--per", "prompt", "--keep", "20", "--policy", "uniform")
    assert result.exit_code == 0, result.output
    assert "prompt 0  kept 20/512" in result.stdout


def test_run_leaves_a_prompt_with_a_placeholder_as_it_is(run):
    plain, given = run(), run("--prompt", f"<image> {QUESTION}")
    assert given.exit_code == 0, given.output
    assert [line for line in plain.stdout.splitlines() if "sequence" in line] == [
        line for line in given.stdout.splitlines() if "sequence" in line
    ]


TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} is there ?"
)


@pytest.mark.parametrize("start", ["", "<bos>"])
def test_run_uses_the_chat_template_and_one_begin_token(run, tiny_checkpoint, tmp_path, start):
    folder = tmp_path / "chat"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(start + TEMPLATE)
    result = run("--model", folder)
    assert result.exit_code == 0, result.output
    assert "sequence 266 -> 74" in result.stdout  # <bos>, 256 patches, 6 words of the question, 3 of the template


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep", "0"), ["keep=0 keeps no token"]),
        (("--keep", "-1"), ["keep=-1"]),
        (("--keep", "1.5"), ["keep=1.5 is not in (0, 1]"]),
        (("--keep", "nan"), ["keep=nan"]),
        (("--keep", "half"), ["keep='half' is no number"]),
        (("--per", "tile"), ["per='tile' is not one of image, crop, frame, prompt"]),
        (("--policy", "cdprunr"), ["policy='cdprunr'", "did you mean 'cdpruner'?"]),
        (("--set", "thta=0.5"), ["thta=0.5 names no field", "did you mean 'theta'?"]),
        (("--set", "theta"), ["has no '='"]),
        (("--set", "theta=2"), ["theta=2 is not in (0, 1)"]),
        (("--set", "theta=warm"), ["theta='warm' is a str", "float | None"]),
        (("--set", "relevance=clip"), ["relevance='clip' is a str"]),
        (("--set", "rounding=flor"), ["rounding='flor'", "did you mean 'floor'?"]),
        (("--positions", "compat"), ["positions='compat'", "did you mean 'compact'?"]),
        (("--dtype", "float23"), ["dtype='float23'", "float32"]),
        (("--device", "cuda:99"), ["device='cuda:99' cannot be used"]),
        (("--prompt", "  "), ["prompt='' is empty"]),
        (("--prompt", "<image> <image> what?"), ["2 times '<image>' for 1 images"]),
        (("--model", "no/such-model"), ["model='no/such-model' is neither a folder here nor a model"]),
    ],
)
def test_run_answers_bad_input_with_one_sentence(run, options, words):
    assert_one_sentence(run(*options), *words)


def test_run_answers_a_bad_image_with_one_sentence(run, broken_image):
    path, words = broken_image
    assert_one_sentence(run("--image", path), str(path), words)


def test_run_refuses_a_folder_without_a_checkpoint(run, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name in ("bare", "broken"):
        assert_one_sentence(run("--model", tmp_path / name), name, "holds no loadable checkpoint")


def test_run_refuses_a_text_only_model(run, tmp_path):
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8, pad_token_id=0
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text-only")
    assert_one_sentence(run("--model", tmp_path / "text-only"), "is a 'llama', which takes no images")


def test_run_refuses_a_classifier(run):
    for model, kind in ((VIT_CHECKPOINT, "vit"), (MOTION_CHECKPOINT, "videomae")):
        result = run("--model", model, "--policy", "tome", "--keep", "0.5")
        assert_one_sentence(result, f"is a {kind!r}, which has no language model", "tokenprune view")


class Processor:
    def __init__(self, image_token="<image>", video_token="<video>", chat_template=None):
        self.image_token, self.video_token, self.chat_template = image_token, video_token, chat_template

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert (add_generation_prompt, tokenize) == (True, False)
        (message,) = messages
        return message["role"] + ":" + "".join(part.get("text", f"<{part['type']}>") for part in message["content"])


def test_a_prompt_gets_its_placeholders():
    put = encoding.with_placeholders
    assert put(Processor(), "why?", images=2) == "<image><image>\nwhy?"
    assert put(Processor(), "why?", images=1, videos=2) == "<image><video><video>\nwhy?"
    assert put(Processor(), "<image> why?", images=1) == "<image> why?"
    assert put(Processor(), "<video> why <image>?", images=1, videos=1) == "<video> why <image>?"
    assert put(Processor(chat_template="{}"), "why?", images=2, videos=1) == "user:<image><image><video>why?"
    with pytest.raises(InputError, match="1 times '<image>' for 2 images"):
        put(Processor(), "<image> why?", images=2)
    with pytest.raises(InputError, match="0 times '<video>' for 1 videos"):
        put(Processor(), "<image> why?", images=1, videos=1)
    for missing, kind in (("image_token", "images"), ("video_token", "videos")):
        with pytest.raises(UnsupportedModelError, match=f"neither a chat template nor a token for {kind}"):
            put(Processor(**{missing: None}), "why?", **{kind: 1})


def test_numbers_and_assignments():
    assert [command.number(text) for text in ("64", "0.5", "1", "1.0")] == [64, 0.5, 1, 1.0]
    assert type(command.number("1")) is int
    assert type(command.number("1.0")) is float
    assert command.assignment("a=[1, 2]") == ("a", [1, 2])
    assert command.assignment("a=b=c") == ("a", "b=c")
    with pytest.raises(InvalidArgumentError):
        command.assignment("a")


@pytest.mark.parametrize("value", ["8", "[8, 4]", "(8, -0.5)", "(8, 1)", "None"])
def test_schedules_as_the_command_line_writes_them(value):
    policy = command.budgeted("tome", "", "image", [f"r={value}"])
    assert (repr(policy.r), policy.keep) == (value, 0.25 if value == "None" else None)


@pytest.mark.parametrize("value", ["0.5", "(8, 4, 2)", "[8, 0.5]", "('a', 0.5)", "many"])
def test_values_that_are_no_schedule(value):
    with pytest.raises(InvalidArgumentError, match=r"the field takes int \| list\[int\] \| tuple\[int, float\]"):
        command.budgeted("tome", "", "image", [f"r={value}"])


def test_commands_of_packages_are_there():
    names = {point.name for point in entry_points(group="tokenprune.commands")}
    assert {"bench", "compare", "eval", "tune"} <= names
    for point in entry_points(group="tokenprune.commands"):
        assert cli._loaded(point) is point.load()


def test_a_command_that_cannot_be_loaded_says_so_and_breaks_no_other():
    point = EntryPoint(name="lost", value="tokenprune.nowhere:lost", group="tokenprune.commands")
    app = typer.Typer()
    app.command("list")(cli.list_command)
    app.command(point.name)(cli._loaded(point))
    lost = CliRunner().invoke(app, ["lost"])
    assert lost.exit_code == 2
    assert "command 'lost' of tokenprune.nowhere:lost cannot be loaded (ModuleNotFoundError" in lost.stderr
    assert CliRunner().invoke(app, ["list"]).exit_code == 0

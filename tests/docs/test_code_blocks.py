"""What README and the pages tell to type: Python runs, page by page, as one script; commands are parsed."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import tomllib
import typer
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from tokenprune import cli
from tokenprune.eval import shapes

ROOT = Path(__file__).parents[2]
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*WRITTEN, *sorted((ROOT / "eval").rglob("README.md"))]
TUTORIALS = ROOT / "docs" / "tutorials"  # tests/docs/test_tutorials.py runs them
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
PLACEHOLDERS = ("...", "<", "NAME", "POLICY")
COMMAND = typer.main.get_command(cli.complete())


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """(language, text) of each."""
    return [(language, text) for _, language, text in BLOCK.findall(page.read_text())]


def python(page):
    return "\n".join(text for language, text in blocks(page) if language == "python")


def commands(page):
    """Lines to type: of blocks without a language, and in the text between backticks."""
    for language, text in blocks(page):
        if not language:
            yield from text.replace("\\\n", " ").splitlines()
    between = BLOCK.sub("", page.read_text())
    yield from re.findall(r"`((?:tokenprune|python|pip|make|pytest|accelerate) [^`]+)`", between)


def answers(page, language):
    """What a page says that blocks of that language print -> the block: next text, with at most one line between."""
    text = page.read_text()
    both = zip(BLOCK.finditer(text), [*BLOCK.finditer(text)][1:], strict=False)
    near = ((a, b) for a, b in both if text[a.end() : b.start()].count("\n") <= 4)
    return {b[3]: a[3] for a, b in near if (a[2], b[2]) == (language, "text")}


WITH_CODE = [page for page in PAGES if python(page) and page.parent != TUTORIALS]
LINES = sorted({line for page in PAGES for line in commands(page) if line.strip()})


@pytest.fixture
def at_home(monkeypatch, tmp_path):
    """A checkout with a photo in it; what is loaded from the hub is the embedded model."""
    for folder in ("eval", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copy(ROOT / "eval/shapes/samples/scene-10000.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    model, processor = shapes.load()
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *_, **__: processor)


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_the_code_of_a_page_runs_as_one_script(page, at_home, capsys):
    exec(compile(python(page), name(page), "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    for said in answers(page, "python"):
        assert said in printed


RUN = "tokenprune run"
ANSWERED = [(page, *one) for page in WRITTEN for one in answers(page, "").items() if one[1].startswith(RUN)]


def test_there_is_code_to_run():
    assert len(WITH_CODE) >= 15
    assert len(LINES) >= 50
    assert sum(len(answers(page, "python")) for page in PAGES) == 1
    assert len(ANSWERED) == 2


@pytest.mark.parametrize(("page", "said", "command"), ANSWERED, ids=[name(one[0]) for one in ANSWERED])
def test_a_command_answers_what_the_page_says(page, said, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli.app, shlex.split(command.replace("\\\n", ""))[1:])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == said.splitlines()


def parsed(words):
    """A line of ours goes through its command's parser."""
    command, context = COMMAND, COMMAND.context_class(COMMAND, info_name="tokenprune")
    while hasattr(command, "commands") and words != ["..."]:
        assert words, f"{context.command_path} needs one of {', '.join(command.commands)}"
        assert words[0] in command.commands, f"{words[0]} is none of {', '.join(command.commands)}"
        command = command.commands[words.pop(0)]
        context = command.context_class(command, parent=context)
    if any(one in " ".join(words) for one in PLACEHOLDERS):
        known = {option for one in command.params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= known
    else:
        command.make_parser(context).parse_args(words)


def module(words):
    """`python -m`: it is there, and its source, or that of a neighbour, names every option."""
    spec = importlib.util.find_spec(words[0])
    assert spec, f"there is no {words[0]}"
    file = Path(spec.origin)
    source = "".join(one.read_text() for one in file.parent.glob("*.py"))
    for option in (word for word in words if word.startswith("--")):
        written = option[2:].replace("-", "_")
        assert f'"{option}"' in source or re.search(rf"^    {written}:", source, re.M), f"{words[0]} takes no {option}"


def extras(words):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for asked in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(asked.split(",")) <= set(known)


@pytest.mark.parametrize("line", LINES)
def test_a_command_exists_and_takes_what_it_is_given(line):
    words = shlex.split(line, comments=True)
    match words:
        case ["tokenprune", *rest]:
            parsed(rest)
        case ["accelerate", "launch", *rest]:
            if "-m" in rest:
                assert rest[rest.index("-m") + 1 :][:2] == ["tokenprune", "eval"]
        case ["python", "-m", "lmms_eval", *_]:
            pass  # not ours; tests/eval/test_lmms_run.py runs it
        case ["python", "-m", *rest]:
            module(rest)
        case ["python" | "pytest", path, *_]:
            assert (ROOT / path).exists()
        case ["make", target, *given]:
            rules = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{target}:", rules, re.M)
            assert all(f"$({one.partition('=')[0]})" in rules for one in given)
        case ["pip", "install", *rest]:
            extras(rest)
        case _:
            pytest.fail(f"nobody knows what {line} does")

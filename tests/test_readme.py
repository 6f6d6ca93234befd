"""What README tells users to type."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenprune.cli import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks():
    """Those that name no language."""
    return [text for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S) if not language]


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("about", ["--video", "predictor=eval/shapes"])
def test_a_line_answers_what_it_says(at_root, about):
    found = blocks()
    at = next(i for i, one in enumerate(found) if one.startswith("tokenprune run") and about in one)
    result = CliRunner().invoke(app, shlex.split(found[at].replace("\\\n", ""))[1:])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == found[at + 1].splitlines()

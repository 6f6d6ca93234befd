"""The code of the tutorials runs, page by page, as one script."""

import re
from pathlib import Path

import pytest

from tokenprune import registry
from tokenprune.adapters import ADAPTERS

PRINTED = {
    "add-a-policy": ("64 of 256 tokens", "'unlike-mean': "),
    "add-a-family": ("has an adapter already", "kept 16 of 256"),
}
PAGES = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.md"))


@pytest.fixture
def as_it_was(monkeypatch):
    """What a page registers is forgotten behind it."""
    before = list(ADAPTERS)
    monkeypatch.setattr(registry, "_POLICIES", dict(registry._POLICIES))
    yield
    ADAPTERS[:] = before


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_runs(page, as_it_was, capsys):
    found = blocks(page)
    assert len(found) >= 4
    exec(compile("\n".join(found), str(page), "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    for word in PRINTED[page.stem]:
        assert word in printed

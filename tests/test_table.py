"""The table of families in the documentation is the one the tests run on."""

from pathlib import Path

import pytest

from tests.families import ALL, BUILT
from tests.families.table import table

PAGE = Path(__file__).parents[1] / "docs" / "families.md"


@pytest.mark.skipif(len(BUILT) < len(ALL), reason="the table is about a transformers that has all families")
def test_the_page_has_the_table():
    text = PAGE.read_text()
    start, stop = text.index("<!-- families: "), text.index("<!-- end of families -->")
    assert text[text.index("\n", start) + 1 : stop] == table(), "run python -m tests.families.table"

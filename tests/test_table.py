"""README's table of families is the one the tests run on."""

from pathlib import Path

import pytest

from tests.families import ALL, BUILT
from tests.families.table import table

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(len(BUILT) < len(ALL), reason="the table is about a transformers that has all families")
def test_readme_has_the_table():
    text = README.read_text()
    start, stop = text.index("<!-- families: "), text.index("<!-- end of families -->")
    assert text[text.index("\n", start) + 1 : stop] == table(), "run python -m tests.families.table"

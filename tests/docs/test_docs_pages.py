"""Pages made of the code and of the committed results."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import tokenprune
from tokenprune import registry
from tokenprune.eval import shapes

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

from _pages import methods, parts, results, text
from _pages.policies import Described

DOCS = Path(__file__).parents[2] / "docs"
NAMES = tokenprune.list_policies()
PAGES = methods.pages()
WRITTEN = {path: path.read_text() for path in DOCS.rglob("*.md")}
ON_PICTURES = [
    name
    for name in NAMES
    if (one := Described(name)).cls.stage in ("projector", "layer")
    and "image" in one.made.kinds
    and "predictor" not in one.cls.__dataclass_fields__
]


def sections(page):
    """Heading -> body."""
    found = re.split(r"^## (.+)\n", page, flags=re.M)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def words(body):
    """What is left to read without markup."""
    return re.findall(r"\w+", re.sub(r"<[^>]+>|[|`*#:-]", " ", body))


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_has_a_page_with_every_section(name):
    found = sections(PAGES[f"methods/{name}.md"])
    assert tuple(found) == methods.SECTIONS
    short = [heading for heading, body in found.items() if not words(body)]
    assert not short, f"{short} of {name} are empty: say it in the class."
    assert methods.NAMELESS not in found["Source"], f"{name} and its module name no source."


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_its_type_default_range_and_meaning(name):
    one, knobs = Described(name), sections(PAGES[f"methods/{name}.md"])["Knobs"]
    rows = {row.split(" | ")[0].strip("| `"): row for row in knobs.splitlines() if row.startswith("| `")}
    assert list(rows) == [field.name for field in one.fields]
    assert all(one.meanings.get(field) for field in rows), f"a field of {name} has no meaning in its docstring"
    for row in rows.values():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 5
        assert all(cells)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_takes_from_the_class_is_all_there(name):
    cls, page = tokenprune.get_policy(name), PAGES[f"methods/{name}.md"]
    plain = words(page)
    for said in (cls.when, cls.limits):
        assert set(re.findall(r"\b[a-z]{5,}\b", said)) - {"alpha", "theta", "delta", "gamma", "kappa"} <= set(plain)


@pytest.fixture(scope="module")
def embedded():
    model, processor = shapes.load()
    sample = next(shapes.held_out(1))
    inputs = processor(images=sample.image, text=shapes.prompt(sample.question.text), return_tensors="pt")
    return model, inputs


@pytest.mark.parametrize("name", ON_PICTURES)
def test_the_lines_on_a_page_run(name, embedded):
    model, inputs = embedded
    known = {"model": model}
    exec(Described(name).usage(), known)
    try:
        model.generate(**inputs, max_new_tokens=1)
        assert known["handle"].report().total == 256
        assert (known["handle"].report().kept < 256) == (name != "none")
    finally:
        known["handle"].remove()


@pytest.fixture
def newcomer():
    @tokenprune.register("newcomer")
    @dataclass(kw_only=True)
    class Newcomer(tokenprune.ProjectorPolicy):
        """The tokens that a test likes.

        s_ij = X_i . X_j; the k largest stay.

        Attributes:
            gain: of the score.

        Source: this test, arXiv 2501.00001.
        """

        cost: ClassVar = "nothing"
        when: ClassVar = "In this test."
        limits: ClassVar = "Elsewhere."
        gain: float = 1.0

    yield
    del registry._POLICIES["newcomer"]


def test_a_new_policy_gets_its_page_without_an_edit(newcomer):
    found = sections(methods.pages()["methods/newcomer.md"])
    assert tuple(found) == methods.SECTIONS
    assert "<i>s</i><sub>ij</sub> = <i>X</i><sub>i</sub>" in found["Formula"]
    assert "| `gain` | <code>float</code> | <code>1.0</code> |" in found["Knobs"]
    assert "arXiv [2501.00001](https://arxiv.org/abs/2501.00001)" in found["Source"]
    assert methods.UNMEASURED in found["Accuracy"]
    assert "methods/newcomer.md" in json.dumps(methods.nav())
    assert "(newcomer.md)" in methods.pages()["methods/index.md"]


def test_figures_are_those_of_the_results():
    result = results.read("accuracy")
    page = sections(PAGES["methods/cdpruner.md"])["Accuracy"]
    for cell in result["rows"]:
        if cell["row"] in ("cdpruner", "random", "uniform"):
            for figure in cell["sets"].values():
                assert f" {100 * figure['accuracy']:.1f} ±" in page


def test_the_figures_quoted_in_choosing_are_those_of_the_results():
    said = (DOCS / "choosing.md").read_text()
    of = {(cell["row"], cell["keep"]): cell["sets"]["scenes"] for cell in results.read("accuracy")["rows"]}

    def right(row, keep, kind=None):
        figure = of[row, keep]["by_kind"][kind] if kind else of[row, keep]
        return 100 * figure["accuracy"]

    assert f"{right('uniform', 0.5):.1f} % at 50 % and {right('uniform', 0.25):.1f} % at 25 %" in said
    counts = [right(name, 0.25, "count") for name in ("uniform", "random", "cdpruner")]
    assert "counts right {:.0f} times in 100, random tokens {:.0f}, `cdpruner` {:.0f}".format(*counts) in said
    tight = right("uniform + fastv", 0.05), right("uniform", 0.05)
    assert "at the FLOPs of 5 % of the tokens {:.1f} %, `uniform` alone {:.1f} %".format(*tight) in said
    by = {(cell["row"], cell["keep"]): cell for cell in results.read("video_accuracy")["rows"]}
    fusion, chance = by["framefusion", 0.1], by["random", 0.1]["sets"]["clips"]["accuracy"]
    share = f"{100 * fusion['sets']['clips']['accuracy']:.1f} % at {100 * fusion['flops']:.1f} % of the prefill FLOPs"
    assert f"{share}, random tokens {100 * chance:.1f} %" in said


def test_the_reference_has_every_public_name():
    named = {
        line.split(".")[-1]
        for page in (DOCS / "reference").glob("*.md")
        for line in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    }
    own_pages = {Described(name).cls.__name__ for name in NAMES}
    public = set(tokenprune.__all__) - own_pages
    assert public <= named, f"{sorted(public - named)} are in no page of docs/reference"


def test_every_part_is_used_and_known():
    asked = {part for page in WRITTEN.values() for part in re.findall(r"\{\{ *([\w-]+) *\}\}", page)}
    assert asked == set(parts.PARTS)


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        (
            "D_ij = 1 - cos(Z_i, Z_j)",
            "<i>D</i><sub>ij</sub> = 1 \\- cos\\(<i>Z</i><sub>i</sub>, <i>Z</i><sub>j</sub>\\)",
        ),
        ("x_(n-1) and s'_j", "<i>x</i><sub>n\\-1</sub> and <i>s'</i><sub>j</sub>"),
        ("sqrt(tau) <= N^2", "√\\(τ\\) ≤ <i>N</i><sup>2</sup>"),
        ("a `x_1 * y` b", "a `x_1 * y` b"),
        ("strict_paper and a * b", "strict\\_paper and a · b"),
    ],
)
def test_formulas_are_typeset(docstring, markdown):
    assert text.prose(docstring) == markdown

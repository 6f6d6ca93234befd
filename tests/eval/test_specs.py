"""Policies as text, read, written and combined with budgets."""

import re

import pytest

from tokenprune import CDPruner, FastV, Random, ToMe
from tokenprune.errors import InvalidArgumentError, UnknownPolicyError
from tokenprune.eval import specs
from tokenprune.eval.tune.candidates import KEEPS, POLICIES, candidates

MADE = {
    "cdpruner(keep=64)": [CDPruner(keep=64)],
    "cdpruner(keep=0.25, theta=0.5)": [CDPruner(keep=0.25, theta=0.5)],
    "cdpruner(keep=64, per='crop')": [CDPruner(keep=64, per="crop")],
    "tome(r=8)+random(keep=0.25, seed=3)": [ToMe(r=8), Random(keep=0.25, seed=3)],
    "none": [],
}


@pytest.mark.parametrize(("text", "made"), MADE.items())
def test_text_and_policies_are_the_same(text, made):
    assert specs.policies(text) == made
    assert specs.policies(specs.text(made)) == made


def test_blanks_and_order_of_fields_do_not_matter():
    assert specs.policies(" tome( r = 8 ) + random(seed=3,keep=2) ") == [ToMe(r=8), Random(keep=2, seed=3)]


def test_a_plus_in_parentheses_joins_nothing():
    assert specs.policies("tome(r=(8, +1.0))") == [ToMe(r=(8, 1.0))]


def test_the_budget_goes_to_the_one_without():
    assert specs.policies("tome(r=8)+cdpruner", keep=32, per="crop") == [ToMe(r=8), CDPruner(keep=32, per="crop")]
    assert specs.policies("none", keep=32) == []


def test_every_policy_with_every_budget_but_those_that_have_one():
    found = specs.expanded(["cdpruner", "random(keep=7)", "none"], [0.5, 9])
    assert found == [[CDPruner(keep=0.5)], [CDPruner(keep=9)], [Random(keep=7)], []]


def test_the_line_to_paste_makes_the_same_policies():
    made = [ToMe(r=8), FastV(keep=0.5, layer=2)]
    line = specs.line(made)
    assert line.startswith("tokenprune.wrap(model, [ToMe(r=8), FastV(")
    inner = re.fullmatch(r"tokenprune\.wrap\(model, (.*)\)", line)[1]
    assert eval(inner, {"ToMe": ToMe, "FastV": FastV}) == made
    assert specs.line([CDPruner(keep=64)]) == "tokenprune.wrap(model, CDPruner(keep=64))"


def test_labels_are_the_budgets():
    assert specs.label([CDPruner(keep=0.25)]) == "0.25"
    assert specs.label([ToMe(r=8), Random(keep=64)]) == "8 + 64"
    assert specs.label([]) == ""


def test_folders_have_names_of_their_own():
    texts = [*candidates(POLICIES, KEEPS, compose=True), "none", "divprune(keep=5)", f"tome(r={list(range(60))})"]
    names = [specs.slug(text) for text in dict.fromkeys(texts)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.=+-]{1,110}", name) for name in names)


@pytest.mark.parametrize(
    ("text", "keep", "error", "said"),
    [
        ("cdpruner(", None, InvalidArgumentError, "cannot be read: write name"),
        ("cdpruner(64)", None, InvalidArgumentError, "fields are name=value"),
        ("cdpruner(keep=f(2))", None, InvalidArgumentError, "fields are name=value"),
        ("", None, InvalidArgumentError, "policy='' cannot be read"),
        ("cdpruner+", None, InvalidArgumentError, "policy='' cannot be read"),
        ("cdprunr", None, UnknownPolicyError, "did you mean 'cdpruner'"),
        ("cdpruner(thet=1)", None, InvalidArgumentError, "did you mean 'theta'"),
        ("cdpruner(keep=2)", 3, InvalidArgumentError, "each states its own budget"),
        ("fastv+cdpruner", 3, InvalidArgumentError, "2 policies state no budget"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(text, keep, error, said):
    with pytest.raises(error, match=re.escape(said)):
        specs.policies(text, keep=keep)

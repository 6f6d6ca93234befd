"""`python -m tests.families.table`: the table of families in docs/families.md, from the list the tests run on."""

from __future__ import annotations

import tokenprune
from tokenprune import UnsupportedPolicyError
from tokenprune.adapters import ADAPTERS, Adapter

from . import BUILT, REFUSED, REFUSED_INSIDE, Family

COLUMNS = (
    "image",
    "video",
    "several images",
    "padding",
    "tiles",
    "tower features",
    "tower attention",
    "inside the tower",
    "decoder layers",
)
HEAD = f"| `model_type` | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}\n"


def row(adapter: Adapter, variants: list[Family]) -> str:
    """One line: what of the family is in the exactness matrix."""
    variants = [family for family in variants if family.name not in REFUSED]
    if not variants:
        return f"| `{adapter.model_type}` | refused: {adapter.problem(None)} | | | | | | | | |\n"
    pictures = [family for family in variants if family.modality == "image" and not family.name.endswith("-video")]
    if any(family.modality == "video" for family in variants):
        video = "yes"
    else:
        video = "as images" if len(pictures) < len(variants) else "–"
    cells = [f"`{adapter.model_type}`", _word(pictures), video, "yes", "yes", _word(any(map(has_tiles, pictures)))]
    inside = _word(adapter.model_type not in REFUSED_INSIDE)
    merged = merged_inside(pictures)
    return f"| {' | '.join([*cells, _word(adapter.patches), _word(adapter.towers), merged, inside])} |\n"


def _word(value: object) -> str:
    return "yes" if value else "–"


def has_tiles(family: Family) -> bool:
    """Whether an image has several crops."""
    model, inputs = family.model(), family.inputs((1,))
    with tokenprune.wrap(model, "uniform", keep=0.5, per="crop") as handle:
        model.generate(**inputs, max_new_tokens=1)
    return len(handle.report().units) > 1 and not family.apart


def merged_inside(variants: list[Family]) -> str:
    """What the language model can be given of images whose patches were merged in the tower."""
    words = []
    for family in variants:
        model, inputs = family.model(), family.inputs((1,))
        try:
            with tokenprune.wrap(model, tokenprune.ToMe(r=2)):
                model.generate(**inputs, max_new_tokens=1)
        except UnsupportedPolicyError:
            words.append("–")
            continue
        try:
            with tokenprune.wrap(model, tokenprune.ToMe(r=2), restore=False):
                model.generate(**inputs, max_new_tokens=1)
            words.append("all or fewer")
        except UnsupportedPolicyError:
            words.append("all tokens")
    return " or ".join(dict.fromkeys(words))


def table() -> str:
    """The whole table."""
    lines = [row(one, [family for family in BUILT if family.model_type == one.model_type]) for one in ADAPTERS]
    return HEAD + "".join(lines)


if __name__ == "__main__":
    print(table(), end="")

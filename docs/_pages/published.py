"""What papers printed about a policy: the recipes that come with `tokenprune eval`."""

from __future__ import annotations

from functools import cache

from tokenprune.eval.recipes import reading

from .text import prose, table

PICTURE_TEXT = ("TextVQA", "OCRBench", "DocVQA", "ChartQA", "AI2D")
READING_MODEL = "qwen2.5-vl-7b"


@cache
def recipes() -> tuple[reading.Recipe, ...]:
    return tuple(map(reading.read, reading.names()))


def number(value: float) -> str:
    return f"{value:g}"


def of(policy: str) -> list[str]:
    """Published rows of a policy, recipe by recipe."""
    made = []
    for recipe in recipes():
        if recipe.method != policy:
            continue
        made.append(f"{prose(recipe.source)} (recipe `{recipe.name}`):\n")
        names = [name for name in recipe.benchmarks if any(name in row.expected for row in recipe.rows)]
        lines = [["dense", *(number(recipe.dense[name]) for name in names)]] if recipe.dense and names else []
        for row in recipe.rows:
            given = [number(row.expected[name]) if name in row.expected else "" for name in names]
            relative = [] if names else [f"{number(row.expected_relative)} % of dense on average"]
            lines.append([f"`{row.policy}`", *given, *relative])
        made.append(table(["", *(names or ["mean"])], lines))
    return made


def reading_text() -> str:
    """All published rows about text in pictures at a quarter or so of the tokens, percent of the dense model."""
    lines = []
    for recipe in recipes():
        if recipe.model != READING_MODEL or not recipe.dense:
            continue
        lines.append([f"{recipe.method}, dense", *(_plain(recipe.dense, name) for name in PICTURE_TEXT), prose(recipe.source)])
        for row in recipe.rows:
            kept = row.policy.partition("keep=")[2].split(",")[0].rstrip(")")
            share = f"{int(kept) / 1296:.0%}" if kept.isdigit() else f"{float(kept):.0%}"
            cells = [_plain(row.expected, name) for name in PICTURE_TEXT]
            lines.append([f"`{recipe.method}`, {share.replace('%', ' %')}", *cells, ""])
    return table(["Qwen2.5-VL-7B", *PICTURE_TEXT, "source"], lines)


def _plain(values: dict[str, float], name: str) -> str:
    return number(values[name]) if name in values else ""

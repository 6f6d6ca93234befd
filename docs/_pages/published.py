"""What papers printed about a policy: the recipes that come with `tokenprune eval`."""

from __future__ import annotations

from functools import cache

from tokenprune.eval.recipes import reading

from .text import prose, table

PICTURE_TEXT = ("TextVQA", "OCRBench", "DocVQA", "ChartQA", "AI2D")
MODELS = {"qwen2.5-vl-7b": "Qwen2.5-VL-7B", "llava-next-7b": "LLaVA-NeXT-7B", "llava-1.5-7b": "LLaVA-1.5-7B"}
CROPS = 5  # of LLaVA-NeXT


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


def reading_text(model: str, total: int, names: tuple[str, ...] = PICTURE_TEXT) -> str:
    """Published rows about text in pictures, of one model, whose dense form has `total` visual tokens."""
    lines, sources = [], {}
    for recipe in recipes():
        if recipe.model != model or not set(names) & set(recipe.dense):
            continue
        sources.setdefault(prose(recipe.source), []).append(f"`{recipe.method}`")
        lines.append([f"**{recipe.method}**, dense", *(_plain(recipe.dense, name) for name in names)])
        for row in recipe.rows:
            cells = [_plain(row.expected, name) for name in names]
            lines.append([f"{recipe.method}, {share(row.policy, total)}", *cells])
    told = "; ".join(f"{', '.join(methods)}: {source}" for source, methods in sources.items())
    return f"{table([MODELS[model], *names], lines)}\nSources: {told}.\n"


def share(policy: str, total: int) -> str:
    """`"visionzip(keep=128, per='crop')"` of 2,880 tokens in 5 crops -> `"22 %"`"""
    kept = float(policy.partition("keep=")[2].split(",")[0].rstrip(")"))
    crops = CROPS if "per='crop'" in policy and "of=" not in policy else 1
    return f"{kept * crops / total if kept > 1 else kept:.0%}".replace("%", "\u00a0%")


def _plain(values: dict[str, float], name: str) -> str:
    return number(values[name]) if name in values else ""

"""One page per registered policy, in one outline, made of its class and of the committed measurements."""

from __future__ import annotations

from . import accuracy, published, timing
from .policies import COMMON, Described, described, stage_of
from .text import GREEK, escaped, paragraph, prose, table

SECTIONS = (
    "What it does",
    "Formula",
    "Knobs",
    "When to use it",
    "Limits",
    "Cost",
    "Source",
    "Accuracy",
    "Time",
)
UNMEASURED = "It is not in the committed measurements."
NAMELESS = "The class names none."


def nav() -> list:
    """Of the section: an overview, and the policies of each stage."""
    by_stage: dict[str, list] = {}
    for one in described():
        by_stage.setdefault(stage_of(one), []).append({one.name: path(one.name)})
    return [{"All policies": "methods/index.md"}, *({stage: pages} for stage, pages in by_stage.items())]


def path(name: str) -> str:
    return f"methods/{name}.md"


def pages() -> dict[str, str]:
    """Path -> Markdown."""
    every = described()
    links = {one.name: f"{one.name}.md" for one in every}
    links |= {one.cls.__name__: f"{one.name}.md" for one in every}
    made = {path(one.name): page(one, {k: v for k, v in links.items() if v != f"{one.name}.md"}) for one in every}
    made["methods/index.md"] = overview(every)
    return made


def overview(every: list[Described]) -> str:
    lines = [
        "# All policies\n\nEach page has the same outline. Which one to take: [Choosing a policy](../choosing.md). "
        "`tokenprune list` and `tokenprune show NAME` print the same in a terminal. Yours is not "
        "among them: [Add a policy](../tutorials/add-a-policy.md).\n"
    ]
    for stage in dict.fromkeys(map(stage_of, every)):
        rows = [
            [
                f"[`{one.name}`]({one.name}.md)",
                prose(one.summary),
                prose(one.needs),
                "both" if one.made.kinds == {"image", "video"} else one.kinds,
            ]
            for one in every
            if stage_of(one) == stage
        ]
        lines.append(f"## {stage}\n\n" + table(["policy", "what it does", "looks at", "prunes"], rows, numbers=False))
    return "\n".join(lines)


def page(one: Described, links: dict[str, str]) -> str:
    """The page of a policy."""
    bodies = (_what, _formula, _knobs, _when, _limits, _cost, _source, _accuracy, _time)
    made = [f"# {one.name}\n"]
    made += [f"## {name}\n\n{body(one, links)}\n" for name, body in zip(SECTIONS, bodies, strict=True)]
    return "\n".join(made)


def _what(one: Described, links: dict[str, str]) -> str:
    facts = {
        "Class": f"`{one.cls.__module__}.{one.cls.__qualname__}`",
        "Stage": f"`{one.cls.stage}` ({stage_of(one)[0].lower()}{stage_of(one)[1:]})",
        "Looks at": prose(one.needs),
        "Prunes": one.kinds,
        "Positions of what is left": one.made.positions,
    }
    (head, first), *rest = facts.items()
    usage = one.usage()
    code = f"\n\n```{{ .python .fragment }}\n{usage}\n```" if usage else ""
    return f"{prose(one.summary, links=links)}\n\n{table([head, first], rest, numbers=False)}{code}"


def _formula(one: Described, links: dict[str, str]) -> str:
    names = [field.name for field in one.fields if "_" in field.name or field.name in GREEK]
    parts = [paragraph(block, names, links) for block in one.rule]
    parts = parts or [prose(one.summary, links=links)]
    return "\n\n".join(['<div class="rule" markdown>', *parts, "</div>"])


def _knobs(one: Described, links: dict[str, str]) -> str:
    rows = []
    for field in one.fields:
        meaning = prose(one.meanings.get(field.name, ""), links=links)
        rows.append(
            [f"`{field.name}`", _code(one.type(field)), _code(one.default(field)), escaped(one.range(field)), meaning]
        )
    made = [table(["field", "type", "default", "takes", "meaning"], rows, numbers=False)] if rows else []
    if not rows:
        made.append("It has no fields of its own.\n")
    if one.budgeted:
        common = ", ".join(f"`{name}`" for name in COMMON)
        made.append(f"The budget: {common}, see [Budgets](../concepts.md#budgets-and-units).\n")
    made += [prose(block, links=links) + "\n" for block in one.about("Attributes: as|Defaults")]
    return "\n".join(made)


def _code(text: str) -> str:
    return f"<code>{escaped(text)}</code>".replace("\\|", "&#124;") if text else ""


def _when(one: Described, links: dict[str, str]) -> str:
    parts = [prose(one.cls.when, links=links)]
    if seen := accuracy.standing(one.name):
        why = "[what such figures can say](../choosing.md#what-the-measurements-here-can-say)"
        parts.append(f"Measured here: {seen} See [Accuracy](#accuracy), and {why}.")
    return "\n\n".join(parts)


def _limits(one: Described, links: dict[str, str]) -> str:
    differs = [prose(block, links=links) for block in one.about("Differs")]
    return "\n\n".join([prose(one.cls.limits, links=links), *differs])


def _cost(one: Described, links: dict[str, str]) -> str:
    cost = one.cls.cost[:1].upper() + one.cls.cost[1:]
    return f"{prose(cost, links=links)}. (Operations, and memory beside the inputs, of one unit; N tokens, k kept.)"


def _source(one: Described, links: dict[str, str]) -> str:
    found = [prose(block, links=links) for block in one.source]
    if not found and one.module:
        found = [f"The class names no paper. Its module says: *{prose(one.module, links=links)}*"]
    return "\n\n".join(found) or NAMELESS


def _accuracy(one: Described, links: dict[str, str]) -> str:
    made = accuracy.measured(one.name)
    if made:
        made.insert(0, _caution(one))
    printed = published.of(one.name)
    if printed:
        made += ["### As published\n", "Not run here; `tokenprune eval --recipe NAME` repeats it.\n", *printed]
    return "\n".join(made or [UNMEASURED])


def _caution(one: Described) -> str:
    if one.cls.stage in ("encoder", "skip"):
        return ""
    return (
        '!!! warning "A small model on drawn scenes"\n\n    These figures say what the method does to that model. Do '
        "not carry the ranking over to photographs: [why](../choosing.md#what-the-measurements-here-can-say).\n"
    )


def _time(one: Described, links: dict[str, str]) -> str:
    return "\n".join(
        timing.measured(one.name) or ["It is not in the committed timings; what it computes is under Cost."]
    )

"""Tables inside of pages that are written by hand; a page says `{{ name }}`."""

from __future__ import annotations

from collections.abc import Callable

from . import published, timing
from .accuracy import cell, grouped, percent, sign
from .policies import described
from .results import read
from .text import escaped, table

BUDGET = 0.25


def quarter() -> str:
    """Every policy in front of the language model at a quarter of the tokens: right, kind by kind."""
    result = read("accuracy")
    kinds = list(result["sets"]["scenes"]["by_kind"])
    rows = [o for o in result["rows"] if "against" not in o and o["keep"] in (BUDGET, 1.0)]
    rows.sort(key=lambda one: -one["sets"]["scenes"]["accuracy"])
    lines = []
    for one in rows:
        figure = one["sets"]["scenes"]
        by = [f"{100 * figure['by_kind'][kind]['accuracy']:.0f}" for kind in kinds]
        scenes, vqa = (f"{100 * one['sets'][name]['accuracy']:.1f}{sign(one['sets'][name])}" for name in one["sets"])
        lines.append([_link(one["row"], one["policy"]), scenes, vqa, *by])
    return table(["25 % (64 of 256)", "scenes", "easy-VQA", *(kind.replace("_", " ") for kind in kinds)], lines)


def _link(row: str, policy: str) -> str:
    known = {one.name for one in described()}
    return f"[{escaped(row)}](methods/{policy}.md)" if policy in known else escaped(row)


def clips() -> str:
    """Policies for videos at their own positions."""
    rows = [one for one in read("video_accuracy")["rows"] if one.get("group") in ("exact", "inside")]
    lines = []
    for cells in grouped(rows):
        by = {one["keep"]: one["sets"]["clips"] for one in cells}
        cells_of = [cell(by[keep]) if keep in by else "" for keep in (0.5, 0.25, 0.1)]
        lines.append([_link(cells[0]["row"], cells[0]["policy"]), *cells_of])
    return table(["clips", *map(percent, (0.5, 0.25, 0.1))], lines)


def bench() -> str:
    """Time to the first token, of the two shapes."""
    both = [{one["policy"]: one for one in read(name)["rows"]} for name in timing.SHAPES]
    names = sorted((name for name in both[0] if name != "dense"), key=lambda name: -both[0][name]["ttft_speedup"][0])
    lines = []
    for name in names:
        line = [_link(name, name)]
        for rows in both:
            one, dense = rows[name], rows["dense"]
            share = one["selection_ms"][0] / dense["ttft_ms"][0]
            over = f"{one['overhead'][0]:.2f}" if one["overhead"] else "none"
            line += [f"{one['ttft_speedup'][0]:.2f}x", timing.percent_of(share), over]
        lines.append(line)
    head = [f"{read(name)['shape']}: {what}" for name in timing.SHAPES for what in ("TTFT", "selection", "over oracle")]
    return table(["policy", *head], lines)


def shares() -> str:
    """Where the time of the dense models goes."""
    lines = []
    for name in timing.SHAPES:
        result = read(name)
        dense = next(one for one in result["rows"] if one["policy"] == "dense")
        whole = dense["ttft_ms"][0]
        parts = [dense["vision_ms"][0], dense["prefill_ms"][0], whole, dense["decode_ms_per_token"][0]]
        limit = whole / dense["vision_ms"][0]
        lines.append([result["shape"], f"{dense['total']:,}", *(f"{part:,.1f}" for part in parts), f"{limit:.1f}x"])
    head = [
        "shape",
        "visual tokens",
        "tower, ms",
        "prefill, ms",
        "TTFT, ms",
        "a further token, ms",
        "at most, tower left alone",
    ]
    return table(head, lines)


def small() -> str:
    """Of the embedded model: policies whose forward takes longer than the dense one's."""
    rows = [one for one in read("accuracy")["rows"] if one["times"] and "against" not in one]
    name = "forward, batch 1"
    slow = sorted((o for o in rows if o["times"][name] > 1), key=lambda one: -one["times"][name])
    lines = [[_link(one["row"], one["policy"]), percent(one["keep"]), f"{one['times'][name]:.2f}"] for one in slow]
    made = table(["policy", "kept", "time of the forward, dense = 1"], lines)
    return made.rstrip().replace("\n", "\n" + 8 * " ")  # inside of a note in a list


def events() -> str:
    """Policies inside the language model, by the size of the model."""
    result = read("events")
    shapes, lines = list(dict.fromkeys(one["shape"] for one in result["rows"])), []
    for policy in dict.fromkeys(one["policy"] for one in result["rows"]):
        by = {one["shape"]: one for one in result["rows"] if one["policy"] == policy}
        cells = [f"{100 * by[s]['prefill']:.0f} ({100 * by[s]['flops']:.0f})" if s in by else "" for s in shapes]
        lines.append([_link(policy, policy.partition("(")[0].partition(",")[0]), *cells])
    return table(["prefill (FLOPs), % of dense", *shapes], lines)


def reading_qwen() -> str:
    return published.reading_text("qwen2.5-vl-7b", 1296)


def reading_next() -> str:
    return published.reading_text("llava-next-7b", 2880, ("TextVQA",))


def commands() -> str:
    """Names of the recipes."""
    from tokenprune.eval.recipes import reading as recipes

    return ", ".join(f"`{name}`" for name in recipes.names())


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (quarter, clips, bench, shares, small, events, reading_qwen, reading_next, commands)
}

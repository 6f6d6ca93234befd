"""What a policy answers right, of the committed measurements, beside those that look at nothing."""

from __future__ import annotations

from typing import Any

from .results import read
from .text import table

BESIDE = ("random", "uniform")
ENCODERS = {"adtp": "adtp", "text-random": "random", "text-first": "first", "text-norm": "norm"}
STANDING = {"accuracy": "keep", "video_accuracy": "keep", "vision_vit": "flops", "vision_motion": "flops"}
Figure = dict[str, Any]


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\u00a0%")


def cell(figure: Figure, against: str = "over_random") -> str:
    """`70.3 ± 1.8 −`: percent, half the 95 % interval, and how it stands to what it is compared with."""
    half = 50 * (figure["high"] - figure["low"])
    return f"{100 * figure['accuracy']:.1f} ± {half:.1f}{sign(figure, against)}"


def sign(figure: Figure, against: str = "over_random") -> str:
    over = figure.get(against)
    if over is None or over["low"] <= 0 <= over["high"]:
        return ""
    return " +" if over["low"] > 0 else " −"


def grid(result: Figure, name: str, rows: list[list[Figure]], shown: list[float], of: str) -> str:
    """A table of one set of questions: a row for each list of cells, a column for each budget."""
    total = next(one["tokens"] for one in result["rows"] if one["row"] == "dense")
    head = [of, *(f"{percent(keep)} ({round(keep * total)})" for keep in shown)]
    lines = []
    for cells in rows:
        by = {one["keep"]: one for one in cells if name in one["sets"]}
        label = cells[0]["row"] if cells[0]["policy"] in BESIDE else f"**{cells[0]['row']}**"
        lines.append([label, *(cell(by[keep]["sets"][name]) if keep in by else "" for keep in shown)])
    return table(head, lines)


def grouped(cells: list[Figure]) -> list[list[Figure]]:
    rows: dict[str, list[Figure]] = {}
    for one in cells:
        rows.setdefault(one["row"], []).append(one)
    return list(rows.values())


def images(policy: str) -> list[str]:
    """Of the embedded LLaVA, for a policy in front of the language model."""
    result = read("accuracy")
    alone = [one for one in result["rows"] if "against" not in one and one["row"] != "dense"]
    own = grouped([one for one in alone if one["policy"] == policy])
    if not own:
        return []
    rows = own + grouped([one for one in alone if one["policy"] in BESIDE and one["policy"] != policy])
    shown = sorted({one["keep"] for row in own for one in row}, reverse=True)
    made = ["The embedded LLaVA (256 visual tokens), accuracy in % by the share of tokens kept:\n"]
    made += [grid(result, name, rows, shown, name) for name in result["sets"]]
    return [*made, _note(result)]


def _note(result: Figure) -> str:
    dense = next(one for one in result["rows"] if one["row"] == "dense")
    facts = [
        f"{name}: {result['sets'][name]['asked']:,} questions, dense {100 * figure['accuracy']:.2f}"
        for name, figure in dense["sets"].items()
    ]
    return (
        f"± half the 95 % interval; + better, − worse than random tokens on the same questions. {'; '.join(facts)}.\n"
    )


def standing(policy: str) -> str:
    """A sentence for each set: at which budgets it is better or worse than random tokens, in front or inside alike."""
    said = []
    for name, what in STANDING.items():
        result = read(name)
        cells = [one for one in result["rows"] if one["row"].partition("(")[0] == policy != "random"]
        for questions in result["sets"]:
            where: dict[str, list[str]] = {"better": [], "no different": [], "worse": []}
            for one in cells:
                figure = one["sets"].get(questions, {})
                if "over_random" in figure:
                    word = {" +": "better", " −": "worse", "": "no different"}[sign(figure)]
                    where[word].append(percent(one[what]))
            told = ", ".join(f"{word} at {', '.join(keeps)}" for word, keeps in where.items() if keeps)
            of = " of the FLOPs" if what == "flops" else ""
            said += [f"on {questions}, {told}{of}"] if told else []
    return f"against random tokens, {'; '.join(said)}." if said else ""


def inside(policy: str) -> list[str]:
    """Of the embedded LLaVA, for a policy inside the language model: alone, and behind evenly spread tokens."""
    result = read("accuracy")
    own = [one for one in result["rows"] if one["policy"] == policy and "over_random" in one.get("against", {})]
    own = own or [one for one in result["rows"] if one["policy"] == policy and "against" in one]
    alone = [one for one in own if " + " not in one["row"]]
    if not alone:
        return []
    names = {one["row"]: one for one in result["rows"] if one["keep"] == alone[0]["keep"]}
    beside = [names[row] for one in alone for row in one["against"].values() if row in names]
    rows = list({one["row"]: one for one in [*alone, *beside]}.values())
    lines = [
        [
            f"**{one['row']}**" if one in alone else one["row"],
            ", ".join(map(str, one.get("counts", [round(one["tokens"])]))),
            percent(one.get("flops") or alone[0]["flops_in_front"]),
            *(cell(one["sets"][name]) if name in one["sets"] else "" for name in result["sets"]),
        ]
        for one in rows
    ]
    head = ["half of the tokens on average", "tokens by layer", "prefill FLOPs", *result["sets"]]
    made = [
        "The embedded LLaVA (256 visual tokens, a decoder of four layers), accuracy in %, beside random tokens that "
        "leave at the same layers, and a policy in front alone:\n",
        table(head, lines),
    ]
    return [*made, *_behind(result, policy), _note(result)]


def _behind(result: Figure, policy: str, front: str = "uniform") -> list[str]:
    own = [one for one in result["rows"] if one["policy"] == policy and one["row"].startswith(f"{front} + ")]
    if not own:
        return []
    names = {row for one in own for row in one["against"].values()}
    beside = [one for one in result["rows"] if one["row"] in names and one["keep"] in {cell["keep"] for cell in own}]
    shown = sorted({one["keep"] for one in own}, reverse=True)
    made = ["At tighter budgets, behind evenly spread tokens, at the FLOPs that `uniform` alone has at that share:\n"]
    for name in result["sets"]:
        lines = []
        for cells in [*grouped(own), *grouped(beside)]:
            by = {one["keep"]: one for one in cells}
            label = f"**{cells[0]['row']}**" if cells[0] in own else cells[0]["row"]
            lines.append([label, *(cell(by[keep]["sets"][name]) if keep in by else "" for keep in shown)])
        made.append(table([name, *(f"{percent(keep)}" for keep in shown)], lines))
    return made


def videos(policy: str) -> list[str]:
    """Of the embedded video model."""
    result = read("video_accuracy")
    own = grouped([one for one in result["rows"] if one["policy"] == policy and one["row"] != "dense"])
    if not own:
        return []
    exact = [one for one in result["rows"] if one.get("group") == "exact"]
    references = [*BESIDE, "uniform-frames"] if own[0][0]["group"] != "inside" else ["random-layers", *BESIDE]
    every = (
        exact if own[0][0]["group"] != "inside" else [*exact, *(o for o in result["rows"] if o["group"] == "inside")]
    )
    fronts = {name for row in own for one in row for name in one["against"].values() if " + " in name}
    beside = grouped([one for one in every if one["policy"] in references and one["policy"] != policy])
    beside += grouped([one for one in result["rows"] if one["row"] in fronts])
    shown = sorted({one["keep"] for row in own for one in row}, reverse=True)
    names = {one["row"] for row in own for one in row}
    lines = []
    for cells in own + beside:
        by = {one["keep"]: one for one in cells}
        label = f"**{cells[0]['row']}**" if cells[0]["row"] in names else cells[0]["row"]
        lines.append([label, *(_clip(by[keep]) if keep in by else "" for keep in shown)])
    return [
        "The embedded video model (8 frames of 64 tokens), accuracy in % by the share of tokens kept; of policies "
        "inside the language model by the share its layers read on average, with the prefill FLOPs in brackets:\n",
        table(["clips", *(f"{percent(keep)} ({round(512 * keep)})" for keep in shown)], lines),
        f"{result['sets']['clips']['asked']:,} clips, dense 99.9; + better, − worse than random tokens. *strict*: the "
        "count of the released code; *compact* and *original*: the other kind of positions than the policy's own.\n",
    ]


def _clip(one: Figure) -> str:
    flops = f" ({percent(one['flops'])})" if one.get("group") in ("inside", "stacked") else ""
    return cell(one["sets"]["clips"]) + flops


def towers(policy: str) -> list[str]:
    """Of the classifiers of images and clips."""
    made = []
    models = {
        "vision_vit": "classifier of images (ViT, 256 patches)",
        "vision_motion": "classifier of clips (VideoMAE)",
    }
    for name, model in models.items():
        result = read(name)
        rows = [one for one in result["rows"] if one["row"].split(",")[0] == policy]
        if not rows:
            continue
        beside = [one for one in result["rows"] if one["row"].startswith("random-blocks") and one not in rows]
        shown, questions = sorted({one["keep"] for one in rows}), next(iter(result["sets"]))
        lines = []
        for cells in grouped([*rows, *beside]):
            by = {one["keep"]: one for one in cells}
            label = f"**{cells[0]['row']}**" if cells[0] in rows else cells[0]["row"]
            lines.append([label, *(_tower(by.get(keep), questions) for keep in shown)])
        dense = next(one for one in result["rows"] if one["row"] == "dense")["sets"][questions]
        flops = {keep: min(one["flops"] for one in rows if one["keep"] == keep) for keep in shown}
        made += [
            f"The {model} trained here, accuracy in % (and times as fast as dense) by the FLOPs of the blocks:\n",
            table([questions, *(percent(flops[keep]) for keep in shown)], lines),
            f"{result['sets'][questions]['asked']:,} of them, dense {100 * dense['accuracy']:.1f}. Times of a "
            f"model this small, in float32 on {result['machine']}, batch {result['batch']}.\n",
        ]
    return made


def _tower(one: Figure | None, name: str) -> str:
    if one is None:
        return ""
    return f"{100 * one['sets'][name]['accuracy']:.1f}" + (f" ({one['speed']:.2f}x)" if "speed" in one else "")


def texts(policy: str) -> list[str]:
    """Of encoders of texts, and of prompts that skip blocks."""
    if policy == "ftp":
        return _skipping()
    if policy not in ENCODERS:
        return []
    result = read("learned_adtp")
    shares = sorted({one["share"] for one in result["rows"] if one["way"] == "first"}, reverse=True)
    lines = []
    for name, way in ENCODERS.items():
        by = {one["share"]: one for one in result["rows"] if one["way"] == way}
        label = f"**{name}**" if name == policy else name
        lines.append([f"{label}: cosine", *(f"{by[share]['cosine']:.3f}" for share in shares)])
        lines.append([f"{label}: halves found, %", *(f"{100 * by[share]['top1']:.1f}" for share in shares)])
    return [
        f"{result['model']}, {result['texts']} paragraphs that nothing was trained on: cosine to the embedding of the "
        "whole paragraph, and how many halves find their other half:\n",
        table(["tokens kept", *map(percent, shares)], lines),
    ]


def _skipping() -> list[str]:
    result = read("ftp")
    shares = sorted({one["share"] for one in result["rows"] if one["share"]})
    lines = []
    for way in ("learned", "static", "random", "blocks"):
        by = {one["share"]: one for one in result["rows"] if one["way"] == way}
        label = {"learned": "**learned router**", "blocks": "whole blocks"}.get(way, f"{way} router")
        lines.append([label, *(f"{by[s]['perplexity']:.2f} · {100 * by[s]['choice']:.0f}" for s in shares)])
    dense = next(one for one in result["rows"] if one["way"] == "dense")
    return [
        f"{result['model']}: perplexity of what follows a prompt of {result['task']['prompt']} tokens · how often it "
        f"is told from three others, in % (dense {dense['perplexity']:.2f} · {100 * dense['choice']:.0f}), by the "
        "share of (token, block) pairs skipped:\n",
        table(["router", *map(percent, shares)], lines),
    ]


def weights(policy: str) -> list[str]:
    """How much of a loss is the weight of the tokens, not what is kept."""
    rows = [one for one in read("weights")["rows"] if one["policy"].split(",")[0] == policy]
    if not rows:
        return []
    shown = sorted({one["keep"] for one in rows}, reverse=True)
    lines = []
    for name in dict.fromkeys(one["policy"] for one in rows):
        by = {one["keep"]: one for one in rows if one["policy"] == name}
        lines.append([name, *(f"{100 * by[k]['plain']:.0f} → {100 * by[k]['weighted']:.0f}" for k in shown)])
    return [
        "The same choice where every token weighs as many as it stands for (500 scenes, % right, as it is → weighed): "
        "what the policy keeps, apart from how its tokens are averaged. `wrap` does not offer such weights.\n",
        table(["weight of a token", *map(percent, shown)], lines),
    ]


def measured(policy: str) -> list[str]:
    """All there is about a policy."""
    parts = [images, weights, inside, videos, towers, texts]
    return [text for part in parts for text in part(policy)]

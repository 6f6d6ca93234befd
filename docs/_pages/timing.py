"""What a policy costs and saves in time, of the committed measurements."""

from __future__ import annotations

from .accuracy import percent
from .results import read
from .text import table

SHAPES = ("bench_llava-next-7b", "bench_qwen2.5-vl-7b")
BESIDE = ("uniform", "random")


def bench(policy: str) -> list[str]:
    lines, facts = [], []
    for name in SHAPES:
        result = read(name)
        by = {one["policy"]: one for one in result["rows"]}
        if policy not in by:
            continue
        for one in dict.fromkeys((policy, *BESIDE)):
            row, dense = by[one], by["dense"]
            oracle = f"{row['overhead'][0]:.2f}" if row["overhead"] else "none"
            low, high = row["ttft_speedup"][1:]
            lines.append(
                [
                    result["shape"] if one == policy else "",
                    f"**{one}**" if one == policy else one,
                    f"{row['kept']} of {row['total']}",
                    f"{row['selection_ms'][0]:.1f}",
                    percent_of(row["selection_ms"][0] / dense["ttft_ms"][0]),
                    f"{row['ttft_speedup'][0]:.2f}x ({low:.2f} to {high:.2f})",
                    oracle,
                ]
            )
        facts.append(f"{result['shape']} at scale {result['scale']}, {result['dtype']}, batch 1, {result['device']}")
    if not lines:
        return []
    head = ["shape", "policy", "tokens", "selection, ms", "of the dense TTFT", "TTFT", "over the oracle"]
    return [
        "`tokenprune bench`, two published shapes scaled to a CPU, random weights; TTFT: time to the first token from "
        "pixels, as a multiple of the dense model's speed:\n",
        table(head, lines),
        f"{'; '.join(facts)}. A selection does not shrink with the width of the model, so beside a model hundreds "
        "of times cheaper than the real one it looks large: see [Performance](../performance.md).\n",
    ]


def percent_of(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def embedded(policy: str) -> list[str]:
    """Of the embedded model, whose language model is so small that a selection is a large part of the time."""
    rows = [
        one for one in read("accuracy")["rows"] if one["policy"] == policy and one["times"] and " + " not in one["row"]
    ]
    if not rows:
        return []
    names, shown = list(rows[0]["times"]), sorted({one["keep"] for one in rows}, reverse=True)
    lines = []
    for row in dict.fromkeys(one["row"] for one in rows):
        by = {one["keep"]: one["times"] for one in rows if one["row"] == row}
        cells = [" · ".join(f"{by[keep][name]:.2f}" for name in names) if keep in by else "" for keep in shown]
        lines.append([row, *cells])
    head = [f"time, dense = 1: {' · '.join(names)}", *map(percent, shown)]
    return [
        "The embedded model (two million parameters, two CPU cores); below 1 is faster than dense:\n",
        table(head, lines),
    ]


def growth(policy: str) -> list[str]:
    result, said = read("scaling"), []
    for axis, unit in (("N", "tokens of an image"), ("frames", "frames of a video")):
        rows = [one for one in result["rows"] if one["what"] == policy and one["axis"] == axis]
        slope = next((o["exponent"] for o in result["exponents"] if o["what"] == policy and o["axis"] == axis), None)
        if rows and slope is not None:
            shown = rows if axis == "frames" else [one for one in rows if one["x"] in (256, 1024, 4096, 16384)]
            cells = ", ".join(f"{one['x']:,}: {1000 * one['seconds']:,.1f} ms" for one in shown)
            said.append(
                f"Selection alone by {unit}, an eighth of them kept: {cells}. It grows with the power {slope:.1f}."
            )
    peaks = {one["what"]: one["peak_mib"] for one in read("selection_speed")["memory"] if one["of"] != "selector"}
    if policy in peaks:
        said.append(f"At 16,384 tokens it holds {peaks[policy]:.1f} MiB beside its inputs.")
    return [" ".join(said) + "\n"] if said else []


def events(policy: str) -> list[str]:
    result = read("events")
    rows = [o for o in result["rows"] if o["policy"].split(",")[0] == policy or o["policy"].startswith(f"{policy}(")]
    if not rows:
        return []
    lines = []
    for one in rows:
        at_loss = sum(event["at_a_loss"] > 0.5 for event in one["by_event"])
        lines.append(
            [
                one["shape"],
                one["policy"],
                percent_of(one["events"]),
                percent_of(one["prefill"]),
                percent_of(one["flops"]),
                f"{at_loss} of {len(one['by_event'])}",
            ]
        )
    head = ["hidden size x layers, visual tokens", "policy", "events", "prefill", "FLOPs", "events at a loss"]
    return [
        f"Scoring and shortening (events) and the whole prefill behind it, in % of the dense prefill "
        f"({result['machine']}, float32, batch 1, random weights):\n",
        table(head, lines),
    ]


def videos(policy: str) -> list[str]:
    result = read("video_time")
    for one in result["rows"]:
        if one["policy"] == policy:
            return [
                f"{result['visual']:,} tokens of 32 frames cut to {result['kept']}: the selection takes "
                f"{100 * one['of_dense']:.2f} % of the dense prefill, the prefill behind it "
                f"{percent_of(result['prefill'])} (decoder of LLaVA-OneVision-0.5B's size, {result['machine']}).\n"
            ]
    return []


def towers(policy: str) -> list[str]:
    result = read("vision_speed")
    rows = [one for one in result["rows"] if one["policy"].split(",")[0] == policy]
    if not rows:
        return []
    columns = list(dict.fromkeys((one["library"], one["dtype"]) for one in rows))
    lines = []
    for name in dict.fromkeys(one["policy"] for one in rows):
        own = {(one["library"], one["dtype"]): one for one in rows if one["policy"] == name}
        any_of = next(iter(own.values()))
        lines.append([name, percent(any_of["flops"]), *(f"{own[column]['speed']:.2f}x" for column in columns)])
    head = ["ViT-B/16", "FLOPs", *(f"{'transformers' if lib == 'hf' else lib}, {dtype}" for lib, dtype in columns)]
    return [f"Images a second over dense ({result['device']}, batch {result['batch']}):\n", table(head, lines)]


def skipping(policy: str) -> list[str]:
    if policy != "ftp":
        return []
    time = read("ftp")["time"]
    told = ", ".join(f"{ratio:.2f} at {percent(float(share))}" for share, ratio in time["ratios"].items())
    return [f"A prompt of {time['tokens']} tokens takes, of the dense time: {told} of the pairs skipped.\n"]


def measured(policy: str) -> list[str]:
    """All there is about a policy."""
    parts = (bench, growth, videos, events, towers, skipping, embedded)
    return [text for part in parts for text in part(policy)]

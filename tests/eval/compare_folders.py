"""Run folders and bench files as `tokenprune eval` and `tokenprune bench` write them, made of numbers."""

import json

TASK = "shapes"


def line(doc_id, right, *, answer=None, kind="color", metric="exact_match", visual=None, **doc):
    """One document of samples_<task>.jsonl."""
    answer = ("yes" if right else f"no {doc_id}") if answer is None else answer
    return {
        "doc_id": doc_id,
        "doc": {"id": doc_id, "kind": kind, **doc},
        "target": "yes",
        "filtered_resps": [answer],
        "visual": visual,
        "seconds": None,
        metric: right,
    }


def run_folder(
    folder, lines, *, policy="none", keep="", task=TASK, reported=None, better=True, failures=(), **settings
):
    """lines: documents of the task, or task -> documents."""
    tasks = lines if isinstance(lines, dict) else {task: lines}
    folder.mkdir(parents=True)
    results, directions = {}, {}
    for name, own in tasks.items():
        known = {"doc_id", "doc", "target", "filtered_resps", "visual", "seconds"}
        metrics = list(dict.fromkeys(key for one in own for key in one if key not in known))
        results[name] = {"alias": name, "samples": len(own)}
        for metric in metrics:
            values = [one[metric] for one in own if metric in one]
            plain = all(isinstance(one, (int, float)) for one in values)
            mean = sum(values) / len(values) if plain else "N/A"
            results[name] |= {f"{metric},none": mean if reported is None else reported}
            results[name] |= {f"{metric}_stderr,none": "N/A"}
        directions[name] = dict.fromkeys(metrics, better)
        text = "".join(json.dumps(one) + "\n" for one in own)
        (folder / f"samples_{name}.jsonl").write_text(text)
    facts = {
        "settings": {"base": "llava_hf", "base_args": {"pretrained": "x"}, "policy": policy, "keep": keep, **settings},
        "results": results,
        "higher_is_better": directions,
        "visual": {},
        "samples": {name: len(own) for name, own in tasks.items()},
    }
    if failures:
        facts["failures"] = failures
    (folder / "results.json").write_text(json.dumps(facts))
    return folder


def answers(rights, *, kept=None, kinds=None):
    """A document for each 0 or 1."""
    visual = {"kept": kept, "total": 256} if kept else None
    return [line(i, right, kind=kinds[i] if kinds else "color", visual=visual) for i, right in enumerate(rights)]


def bench_row(policy, keep, configuration, speedup, *, batch=1, kept=64, ms=10.0, overhead=None):
    spread = [speedup, 0.9 * speedup, 1.1 * speedup]
    return {
        "policy": policy, "configuration": configuration, "keep": keep, "batch": batch, "kept": kept, "total": 256,
        "ttft_ms": [ms, ms, ms], "end_to_end_ms": [2 * ms, 2 * ms, 2 * ms], "ttft_speedup": spread,
        "end_to_end_speedup": spread, "overhead": overhead and [overhead] * 3,
    }  # fmt: skip


def bench_file(file, rows, *, device="CPU of a test"):
    dense = bench_row("dense", "", "", 1.0, kept=256, ms=20.0)
    facts = {
        "device": device,
        "versions": {"torch": "2.0"},
        "shape": "tiny",
        "dtype": "float32",
        "rows": [dense, *rows],
    }
    file.write_text(json.dumps(facts))
    return file

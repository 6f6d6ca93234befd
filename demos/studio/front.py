"""Committed results, as tables for the page's plot."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parents[2] / "eval" / "results"
SETS = {  # on the page -> (file, set)
    "pictures of shapes": ("accuracy.json", "scenes"),
    "easy-VQA": ("accuracy.json", "easy-VQA"),
    "clips of shapes": ("video_accuracy.json", "clips"),
}
FIRST = {  # drawn at first
    "accuracy.json": ["random", "uniform", "cdpruner", "divprune", "visionzip", "fastv", "uniform + fastv"],
    "video_accuracy.json": ["random", "uniform", "uniform-frames", "prunevid", "fastvid", "holitom", "vidcom2"],
}
KEPT, TIME = "visual tokens kept, %", "time of a forward, dense = 1"
RIGHT = "right answers, %"


@cache
def _rows(file: str) -> list[dict]:
    return [row for row in json.loads((RESULTS / file).read_text())["rows"] if row["policy"] != "dense"]


def policies(set_name: str) -> list[str]:
    """Names of what was measured, in the order of the file."""
    return list(dict.fromkeys(row["row"] for row in _rows(SETS[set_name][0])))


def first(set_name: str) -> list[str]:
    """Those drawn at first."""
    return [name for name in FIRST[SETS[set_name][0]] if name in policies(set_name)]


def axes(set_name: str) -> list[str]:
    """What accuracy can be drawn against: times were not measured with all."""
    return [KEPT, TIME] if any(row.get("times") for row in _rows(SETS[set_name][0])) else [KEPT]


def table(set_name: str, chosen: list[str], axis: str) -> pd.DataFrame:
    """A row for each measured point: policy, budget, accuracy with its 95 % interval, and time where there is one."""
    file, name = SETS[set_name]
    found = []
    for row in _rows(file):
        figure = row["sets"].get(name)
        time = (row.get("times") or {}).get("forward, batch 1")
        if row["row"] not in chosen or figure is None or (axis == TIME and time is None):
            continue
        found.append(
            {
                "policy": row["row"],
                KEPT: round(100 * row["keep"], 1),
                TIME: time,
                RIGHT: round(100 * figure["accuracy"], 1),
                "95 %": f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}" if "low" in figure else "",
            }
        )
    made = pd.DataFrame(found, columns=["policy", KEPT, TIME, RIGHT, "95 %"])
    return made.sort_values(["policy", axis], ignore_index=True)


def dense(set_name: str) -> float:
    """What the dense model answers right, in percent."""
    file, name = SETS[set_name]
    rows = json.loads((RESULTS / file).read_text())["rows"]
    return 100 * next(row for row in rows if row["policy"] == "dense")["sets"][name]["accuracy"]

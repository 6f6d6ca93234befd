"""The committed measurements: read, linked, and as pages of their own."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "eval" / "results"
TITLES = {
    "accuracy": "Images: accuracy",
    "weights": "Images: weight of a token",
    "weights_inside": "Images: weight inside",
    "video_accuracy": "Videos: accuracy",
    "video_weights": "Videos: weight of a token",
    "video_kept": "Videos: what is kept",
    "video_footage": "Videos: real footage",
    "video_time": "Videos: time",
    "vision_vit": "Classifier of images",
    "vision_motion": "Classifier of clips",
    "vision_composed_images": "Stages composed",
    "vision_weights": "Merged in the tower",
    "vision_speed": "ViT-B: speed",
    "bench_llava-next-7b": "Bench: LLaVA-NeXT shape",
    "bench_qwen2.5-vl-7b": "Bench: Qwen2.5-VL shape",
    "selection_speed": "Greedy selections",
    "scaling": "Growth with tokens",
    "events": "Events inside the decoder",
    "row_costs": "Attention rows",
    "hook_costs": "Hooks",
    "ftp": "FTP",
    "learned_adtp": "AD-TP",
    "lmms_images": "lmms-eval: images",
    "lmms_videos": "lmms-eval: videos",
}


@cache
def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def written() -> list[str]:
    """Names of what is there as Markdown; those with a title first."""
    names = {file.stem for file in RESULTS.glob("*.md")}
    return [name for name in TITLES if name in names] + sorted(names - set(TITLES))


def title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def nav() -> list[dict[str, str]]:
    return [{"All measurements": "measurements/index.md"}] + [
        {title(one): f"measurements/{one}.md"} for one in written()
    ]


def pages() -> dict[str, str]:
    """Path -> Markdown of every committed table, word for word below its title."""
    made = {f"measurements/{one}.md": f"# {title(one)}\n\n{(RESULTS / f'{one}.md').read_text()}" for one in written()}
    rows = "\n".join(f"- [{title(one)}]({one}.md)" for one in written())
    made["measurements/index.md"] = (
        "# Measurements\n\nThe tables that are committed in `eval/results`, as the programs wrote them; each has a "
        "JSON of the same name beside it. What they mean is said in [Choosing a policy](../choosing.md) and "
        f"[Performance](../performance.md).\n\n{rows}\n"
    )
    return made


def pictures() -> dict[str, Path]:
    """Path -> file of every committed plot."""
    return {f"images/{file.name}": file for pattern in ("*.png", "*.jpg") for file in sorted(RESULTS.glob(pattern))}

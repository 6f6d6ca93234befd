"""Accuracy of the two classifiers: `python -m tokenprune.eval.shapes.classifier_evaluate [--samples N]`."""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from .classifiers import MOTION_CHECKPOINT, VIT_CHECKPOINT, classify, load_motion, load_vit
from .motion_data import MOTIONS, MotionSample, held_out_motions
from .video_heldout import one_frame, shuffled
from .vit_data import LABELS, held_out_objects

THIRDS = ("smallest third", "middle third", "largest third")


def thirds(sides: Sequence[float]) -> list[str]:
    """In which third each shape is by its size; equal sizes are in the same one."""
    return [THIRDS[i] for i in np.searchsorted(np.quantile(sides, [1 / 3, 2 / 3]), sides)]


def by_group(right: Sequence[bool], groups: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Correct and asked by group, sorted by the name of the group."""
    groups = list(groups)
    asked, correct = Counter(groups), Counter(group for group, hit in zip(groups, right, strict=True) if hit)
    return {group: (correct[group], asked[group]) for group in sorted(asked)}


def pictures(samples: int, folder: Path = VIT_CHECKPOINT) -> list[dict[str, tuple[int, int]]]:
    """Correct and asked of the image classifier: of all pictures, by size, by shape, by colour."""
    seen = list(held_out_objects(samples))
    found = classify(*load_vit(folder), [one.picture for one in seen])
    right = [label == one.label for label, one in zip(found, seen, strict=True)]
    groups = [["all pictures"] * len(seen), thirds([one.side for one in seen])]
    groups += [[LABELS[one.label].split()[i] for one in seen] for i in (1, 0)]
    return [by_group(right, names) for names in groups]


def clips(samples: int, folder: Path = MOTION_CHECKPOINT) -> dict[str, list[dict[str, tuple[int, int]]]]:
    """Correct and asked of the clip classifier by view: of all clips, by motion, by size, by number of still shapes.

    "backwards" asks for the label of the clip as it is then; "pair": for any of the two labels that a clip and the same
    clip backwards have.
    """
    model, seen = load_motion(folder), list(held_out_motions(samples))
    views = {
        "as it is": seen,
        "backwards": [one.reversed() for one in seen],
        "shuffled": [shuffled(one, seed) for seed, one in enumerate(seen)],
        "first frame only": [one_frame(one) for one in seen],
    }
    found = {name: _told(model, view) for name, view in views.items()}
    right = {name: [a == one.label for a, one in zip(found[name], view, strict=True)] for name, view in views.items()}
    for name in ("shuffled", "first frame only"):
        right[f"{name}, pair"] = [a // 2 == one.label // 2 for a, one in zip(found[name], seen, strict=True)]
    groups = [["all clips"] * len(seen), [MOTIONS[one.label] for one in seen], thirds([one.side for one in seen])]
    groups.append([f"{one.still} still shapes" for one in seen])
    return {name: [by_group(hits, names) for names in groups] for name, hits in right.items()}


def _told(model, view: list[MotionSample]) -> list[int]:
    return classify(*model, [one.pictures for one in view])


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.shapes.classifier_evaluate", description=__doc__)
    parser.add_argument("--samples", type=int, default=2400, help="held-out pictures, and clips")
    parser.add_argument("--vit", type=Path, default=VIT_CHECKPOINT, help="folder of the image classifier")
    parser.add_argument("--motion", type=Path, default=MOTION_CHECKPOINT, help="folder of the clip classifier")
    given = parser.parse_args()
    for columns in ({"pictures": pictures(given.samples, given.vit)}, clips(given.samples, given.motion)):
        table = Table("", "asked", *(f"{name} %" for name in columns))
        for sections in zip(*columns.values(), strict=True):
            for group, (_, asked) in sections[0].items():
                shares = (f"{correct / asked:.1%}" for correct, _ in (section[group] for section in sections))
                table.add_row(group, str(asked), *shares)
            table.add_section()
        Console().print(table)


if __name__ == "__main__":
    main()

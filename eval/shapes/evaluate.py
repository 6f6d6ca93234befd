"""Accuracy per kind of question: `python -m tokenprune.eval.shapes.evaluate [--scenes N] [--easy-vqa]`."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel, ProcessorMixin

from .heldout import Sample, easy_vqa, held_out
from .inference import answer, answer_video, load
from .video_heldout import VideoSample


def accuracy(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Iterable[Sample | VideoSample],
    batch_size: int = 32,
) -> dict[str, tuple[int, int]]:
    """Correct and asked by kind, for pictures or for clips. The model may be wrapped: only `generate` is called."""
    correct, asked = Counter(), Counter()
    samples = iter(samples)
    while batch := list(islice(samples, batch_size)):
        texts = [sample.question.text for sample in batch]
        if isinstance(batch[0], VideoSample):
            found = answer_video(model, processor, [sample.frames for sample in batch], texts, batch_size)
        else:
            found = answer(model, processor, [sample.image for sample in batch], texts, batch_size)
        for sample, word in zip(batch, found, strict=True):
            asked[sample.question.kind] += 1
            correct[sample.question.kind] += word == sample.question.answer
    return {kind: (correct[kind], total) for kind, total in asked.items()}


def overall(counts: dict[str, tuple[int, int]]) -> float:
    """Share of all questions that were answered correctly."""
    return sum(right for right, _ in counts.values()) / sum(total for _, total in counts.values())


def majority(samples: Iterable[Sample | VideoSample]) -> dict[str, tuple[int, int]]:
    """What always giving the commonest answer of each kind scores: the accuracy of not looking."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for sample in samples:
        answers[sample.question.kind][sample.question.answer] += 1
    return {kind: (max(count.values()), sum(count.values())) for kind, count in answers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.shapes.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=5000, help="held-out scenes, one question each")
    parser.add_argument("--easy-vqa", action="store_true", help="also the easy-VQA test split")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    model, processor = load()
    table = Table("kind", "correct", "asked", "accuracy %", "majority %")
    sets = [(list(held_out(arguments.scenes)), "held-out scenes")]
    if arguments.easy_vqa:
        sets.append((list(easy_vqa()), "easy-VQA test"))
    for samples, name in sets:
        counts = accuracy(model, processor, track(samples, name), arguments.batch_size)
        guessed = majority(samples)
        rows = [(kind, counts[kind], guessed[kind]) for kind in sorted(counts)]
        rows.append((f"all {name}", *(tuple(map(sum, zip(*c.values(), strict=True))) for c in (counts, guessed))))
        for kind, (right, total), (guess, _) in rows:
            table.add_row(kind, str(right), str(total), f"{right / total:.1%}", f"{guess / total:.1%}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()

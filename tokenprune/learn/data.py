"""Training examples, and the arguments of a forward for some of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..encoding import encode
from ..errors import InputError, nearest
from ..readers import open_image

GROUP = "tokenprune.training_data"  # entry points: a name of --data -> a function of a number


@dataclass(frozen=True)
class Example:
    """A picture, a question about it, and the answer."""

    image: Image
    question: str
    answer: str


# Number -> example, always the same one; numbers have no end
Examples = Callable[[int], Example]


@dataclass(frozen=True)
class Encoded:
    """A batch of prompts with their answers, padded on the right.

    Attributes:
        inputs: of the model's forward.
        answer: [B, L] bool, positions of the answer and the end behind it.
    """

    inputs: dict[str, Any]
    answer: Tensor


def examples(data: str) -> Examples:
    """Those of a name ("shapes"), or of a file with a line of JSON for each: {"image", "question", "answer"}.

    Raises:
        InputError: neither; a file that cannot be read, is empty, or lacks one of these.
    """
    named = {point.name: point for point in entry_points(group=GROUP)}
    if data in named:
        return named[data].load()
    if not Path(data).is_file():
        raise InputError(
            f"data={data!r} is no file and none of {', '.join(sorted(named))}{nearest(data, named)}: give a file with "
            'a line {"image": "a.png", "question": "...", "answer": "..."} for each example.'
        )
    return _File(Path(data))


class _File:
    """Lines of JSON; paths of pictures are relative to the file. In an order drawn anew for every pass."""

    def __init__(self, path: Path):
        self.folder, self.rows = path.parent, []
        try:
            lines = path.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f"data={str(path)!r} cannot be read ({error}): give a text file.") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                self.rows.append(_row(line, f"{path}, line {number}"))
        if not self.rows:
            raise InputError(f"data={str(path)!r} holds no example: give a line of JSON for each.")

    def __call__(self, number: int) -> Example:
        turn, place = divmod(number, len(self.rows))
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(turn))
        row = self.rows[int(order[place])]
        return Example(open_image(self.folder / row["image"]), row["question"], row["answer"])


def _row(line: str, where: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON ({error}): write one object a line.") from None
    missing = [key for key in ("image", "question", "answer") if not isinstance(row, dict) or not row.get(key)]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}: each line needs image, question and answer.")
    return {key: str(row[key]) for key in ("image", "question", "answer")}


def encoded(processor: Any, model: Any, batch: Sequence[Example]) -> Encoded:
    """Prompts as `tokenprune run` makes them, with answers behind.

    Raises:
        InputError: pictures that this processor cannot put into one batch.
    """
    tokenizer = processor.tokenizer
    rows, ends = [], [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for one in batch:
        inputs, _ = encode(processor, model, one.question, [one.image])
        rows.append((dict(inputs), tokenizer(one.answer, add_special_tokens=False)["input_ids"] + ends))
    prompts = [inputs["input_ids"].shape[1] for inputs, _ in rows]
    length = max(prompt + len(answer) for prompt, (_, answer) in zip(prompts, rows, strict=True))
    marks = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (prompt, (inputs, answer)) in enumerate(zip(prompts, rows, strict=True)):
        marks[row, prompt : prompt + len(answer)] = True
        behind = length - prompt
        for name, value in inputs.items():
            if value.ndim >= 2 and value.shape[:2] == (1, prompt):  # a number for every token
                tail = value.new_zeros(1, behind, *value.shape[2:])
                if name == "input_ids":
                    tail[0] = tokenizer.pad_token_id or 0
                    tail[0, : len(answer)] = torch.tensor(answer)
                elif name == "attention_mask":
                    tail[0, : len(answer)] = 1
                inputs[name] = torch.cat([value, tail], 1)
    try:
        joined = {name: torch.cat([inputs[name] for inputs, _ in rows]) for name in rows[0][0]}
    except RuntimeError as error:
        raise InputError(
            f"{type(processor).__name__} gives pictures of different shapes ({error}), which make no batch: train with "
            "--batch 1 and --accumulate."
        ) from None
    return Encoded(joined, marks.to(model.device))

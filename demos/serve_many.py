"""Requests of many users, answered in batches by one wrapped model: `python demos/serve_many.py`.

Each request says whether it may be pruned. A batch holds requests of one kind, so `handle.enabled` switches between two
batches; nothing is wrapped or loaded again. Time and cache of both kinds are measured in turns.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from PIL import Image

import tokenprune
from tokenprune.eval import shapes


@dataclass
class Request:
    """A question about a picture; `exact`: no token may be dropped for it."""

    image: Image.Image
    question: str
    exact: bool = False


def batches(requests: list[Request], size: int) -> Iterator[list[int]]:
    """Places of requests that are answered together: of one kind, in order of arrival."""
    for exact in (True, False):
        places = [i for i, one in enumerate(requests) if one.exact is exact]
        yield from (places[start : start + size] for start in range(0, len(places), size))


def serve(model, processor, handle: tokenprune.Handle, requests: list[Request], size: int) -> list[str]:
    """The answers, in order of the requests."""
    answers = [""] * len(requests)
    for places in batches(requests, size):
        some = [requests[i] for i in places]
        text = [shapes.prompt(one.question) for one in some]
        inputs = processor(text=text, images=[one.image for one in some], padding=True, return_tensors="pt")
        handle.enabled = not some[0].exact
        handle.instruction = [one.question for one in some]  # each row is pruned by its own question
        output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        words = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for place, word in zip(places, words, strict=True):
            answers[place] = word.split()[0]
    handle.enabled = True
    return answers


def main(
    count: Annotated[int, typer.Option(min=2, help="Requests.")] = 48,
    size: Annotated[int, typer.Option(min=1, help="Requests of a batch.")] = 8,
    keep: Annotated[float, typer.Option(help="Share of the visual tokens kept.")] = 0.11,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 3,
) -> None:
    torch.set_num_threads(1)
    model, processor = shapes.load()
    samples = list(shapes.held_out(count))
    truth = [one.question.answer for one in samples]
    with tokenprune.wrap(model, [tokenprune.Uniform(keep=0.5), tokenprune.FastV(layer=2, keep=keep)]) as handle:
        mixed = [Request(one.image, one.question.text, exact=i % 3 == 0) for i, one in enumerate(samples)]
        answers = serve(model, processor, handle, mixed, size)
        report = handle.report()
        lanes = {"exact": [], "pruned": []}
        for request, answer, right in zip(mixed, answers, truth, strict=True):
            lanes["exact" if request.exact else "pruned"].append(answer == right)
        for name, right in lanes.items():
            print(f"{name}: {sum(right)} of {len(right)} right")
        print(f"a pruned batch: {report.kept} of {report.total} visual tokens in {len(report.lengths)} rows")
        seconds = {True: [], False: []}
        for _ in range(rounds):
            for exact, taken in seconds.items():
                requests = [Request(one.image, one.question.text, exact) for one in samples]
                begun = time.perf_counter()
                serve(model, processor, handle, requests, size)
                taken.append(time.perf_counter() - begun)
    ratios = [dense / pruned for dense, pruned in zip(seconds[True], seconds[False], strict=True)]
    print(f"{statistics.median(ratios):.2f} times as many requests a second, pruned; one CPU thread, {rounds} rounds")


if __name__ == "__main__":
    typer.run(main)

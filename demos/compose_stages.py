"""Policies of three stages, alone and together, what each leaves and saves: `python demos/compose_stages.py`."""

from rich.console import Console
from rich.table import Table

import tokenprune
from tokenprune import FastV, ToMe, Uniform
from tokenprune.eval import shapes

WAYS = {
    "dense": [],
    "vision tower": [ToMe(keep=0.6)],
    "projector": [Uniform(keep=0.5)],
    "language model": [FastV(layer=2, keep=0.1)],
    "all three": [ToMe(keep=0.6), Uniform(keep=0.5), FastV(layer=2, keep=0.1)],
}
COSTS = {"tower_flops": "tower", "prefill_flops": "prefill", "kv_bytes": "KV cache"}
QUESTIONS = 64


def main() -> None:
    model, processor = shapes.load()
    samples = list(shapes.held_out(QUESTIONS))
    pictures, questions = [one.image for one in samples], [one.question.text for one in samples]
    title = f"{QUESTIONS} held-out questions; costs estimated, of dense"
    table = Table("stage", "right", "tokens kept", *COSTS.values(), title=title)
    for name, policies in WAYS.items():
        with tokenprune.wrap(model, policies or "none") as handle:
            answers = shapes.answer(model, processor, pictures, questions)
        right = sum(answer == one.question.answer for answer, one in zip(answers, samples, strict=True))
        report = handle.report()
        cost = report.cost()
        shares = (cost.get(f"{what}_pruned", 1) / cost.get(f"{what}_dense", 1) for what in COSTS)
        table.add_row(name, str(right), f"{report.kept / report.total:.0%}", *(f"{share:.0%}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    main()

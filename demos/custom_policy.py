"""A policy of one's own, registered and used: `python demos/custom_policy.py`."""

from dataclasses import dataclass
from typing import ClassVar

import torch

import tokenprune
from tokenprune import ProjectorPolicy, Selection, VisualTokens, register
from tokenprune.eval import shapes


@register("strongest")
@dataclass(kw_only=True)
class Strongest(ProjectorPolicy):
    """Cuts each image, row by row, into k stretches, and keeps of each the token farthest from the image's mean.

    Attributes:
        p: norm that distances are measured by.
    """

    cost: ClassVar = "2 N D operations"
    p: float = 2.0

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        x = tokens.features.float()  # [G, N, D]
        scores = (x - x.mean(1, keepdim=True)).norm(p=self.p, dim=-1)
        stretches = torch.arange(x.shape[1], device=x.device).tensor_split(k)
        best = [stretch[scores[:, stretch].argmax(1)] for stretch in stretches]
        return Selection.subset(torch.stack(best, 1), scores=scores)


def main() -> None:
    model, processor = shapes.load()
    samples = list(shapes.held_out(64))
    pictures, questions = [one.image for one in samples], [one.question.text for one in samples]
    for name in ("strongest", "uniform", "random"):
        with tokenprune.wrap(model, name, keep=0.25):
            answers = shapes.answer(model, processor, pictures, questions)
        right = sum(answer == one.question.answer for answer, one in zip(answers, samples, strict=True))
        print(f"{name}: {right} of {len(samples)} right with a quarter of the tokens")


if __name__ == "__main__":
    main()

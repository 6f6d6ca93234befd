"""The honest competitor: a smaller picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from ..errors import InvalidArgumentError, nearest
from ..registry import register
from .base import Policy

if TYPE_CHECKING:
    from PIL.Image import Image

Resample = Literal["bicubic", "lanczos", "bilinear"]


@register("resize")
@dataclass(kw_only=True)
class Resize(Policy):
    """No pruning at all: a smaller picture, of as many patches as the budget has tokens. Saves tower time, too.

    A picture that the dense model cuts into R x C cells (N = R C tokens) gets budget k = `Budget(keep).count(N)` and
    becomes r x c cells with r = floor(R sqrt(k / N)), c = floor(C sqrt(k / N)), both at least 1; then one row or
    column more where r c stays <= k. So the count of tokens is never above the budget and the shape is nearly kept.

    It works before the processor, so `wrap` does not take it. How to use it, `multiple` being pixels per token side:

    A model with dynamic resolution (Qwen-VL, patch 14 or 16 times merge 2) just gets the picture:

        image = Resize(keep=0.25, multiple=28).image(picture)

    with `size=` if the processor would shrink the picture even for the dense model, and the processor's lower limit
    (`size={"shortest_edge": 28 * 28, "longest_edge": ...}`) so low that it does not enlarge it again.

    A tower of one fixed size (CLIP, SigLIP: LLaVA, and the embedded model of tokenprune.eval) has to stretch its
    position embedding, which it was not trained for:

        small = Resize(keep=0.5, multiple=8).image(picture, size=(128, 128))  # what the dense model reads
        processor.image_processor.size = {"height": small.height, "width": small.width}  # and do_center_crop = False
        hook = model.model.vision_tower.embeddings.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"interpolate_pos_encoding": True}), with_kwargs=True)

    then processor and `generate` as always; the processor writes the smaller number of placeholders by itself. Put
    the size back and `hook.remove()` afterwards.

    Attributes:
        multiple: pixels along a side that one visual token stands for (patch size times patches merged along it):
            8 in the embedded model, 14 in LLaVA, 28 in Qwen2.5-VL, 32 in Qwen3-VL. With 1, `keep` is of pixels.
        resample: Pillow's filter; "bicubic" is what most processors use.
    """

    stage: ClassVar[str] = "processor"
    needs: ClassVar = frozenset()
    cost: ClassVar = "one Pillow resize per picture; the tower gets cheaper as well"
    when: ClassVar = "Always as a baseline: where it wins, pruning is not worth its trouble. With dynamic resolution."
    limits: ClassVar = (
        "Fine print is lost everywhere alike. Towers of one fixed size lose much, being used off their resolution."
    )

    multiple: int = 1
    resample: Resample = "bicubic"

    def __post_init__(self):
        super().__post_init__()
        if type(self.multiple) is not int or self.multiple < 1:
            raise InvalidArgumentError(
                f"multiple={self.multiple!r} is not an int of at least 1: give pixels per token."
            )
        if self.resample not in get_args(Resample):
            raise InvalidArgumentError(
                f"resample={self.resample!r} is not one of {', '.join(get_args(Resample))}"
                f"{nearest(self.resample, get_args(Resample))}."
            )

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels that a picture of this size shrinks to."""
        if self.keep is None:
            raise InvalidArgumentError("keep=None is no budget: give Resize(keep=...), a share, or tokens as an int.")
        columns, rows = max(1, width // self.multiple), max(1, height // self.multiple)
        k = self.budget.count(columns * rows)
        scale = math.sqrt(k / (columns * rows)) + 1e-9  # sqrt(4 / 9) * 3 is 2, not 1.9999
        c = min(max(1, int(columns * scale)), k)
        r = min(max(1, int(rows * scale)), k // c)
        if r < rows and (r + 1) * c <= k and (rows * c >= columns * r or (c + 1) * r > k):
            r += 1
        elif c < columns and (c + 1) * r <= k:
            c += 1
        return c * self.multiple, r * self.multiple

    def image(self, picture: Image, size: tuple[int, int] | None = None) -> Image:
        """The picture, shrunk to the budget.

        Args:
            picture: any Pillow picture.
            size: (width, height) of what the dense model would read, where that is not the picture itself.
        """
        from PIL.Image import Resampling

        return picture.resize(self.size(*(size or picture.size)), Resampling[self.resample.upper()])

"""What policies share that work inside a vision transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..blocks import BlockTokens, Grid, Reads, Reduction
from ..errors import InvalidArgumentError
from .base import Policy


@dataclass(kw_only=True)
class VisionPolicy(Policy):
    """Works inside the blocks of a vision transformer: fewer tokens for all that follows in the tower.

    `keep` counts the patches of one image (of a clip, where the tower sees all its frames at once) that are left behind
    the last block that is read.

    Attributes:
        proportional: keys of merged tokens get log(size) added to their attention scores, in all blocks behind.
    """

    stage: ClassVar[str] = "vision"
    needs: ClassVar = frozenset()
    reads: ClassVar[frozenset[Reads]] = frozenset()
    merges: ClassVar[bool] = False  # nothing is dropped: every token lives on in another
    behind: ClassVar[bool] = False  # tokens leave behind a block, rather than between its attention and its MLP
    budgeted: ClassVar[bool] = True  # has a schedule without `keep`
    proportional: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if (self.per, self.of) != ("image", None):
            raise InvalidArgumentError(
                f"per={self.per!r}, of={self.of!r}: a tower sees one image (tile, frame) at a time: leave both out."
            )

    def counts(self, depth: int, total: int, grid: Grid | None = None) -> list[int]:
        """Tokens left behind each of `depth` blocks, without the prefix; they never rise.

        Args:
            depth: blocks up to the last one that is read.
            total: patches of the input.
            grid: (frames, rows, columns) of them, None where not known.

        Raises:
            InvalidArgumentError: a schedule that such a tower does not have.
        """
        raise NotImplementedError

    def reduce(self, tokens: BlockTokens, k: int) -> Reduction:
        """Merge or drop until k tokens besides the prefix are left. The runtime calls it with 1 <= k < n - P only.

        Read no number of the tensors (`item`, `bool`, `nonzero`): every block would wait for the device.
        """
        raise NotImplementedError

"""The control of policies that renumber what is left."""

from dataclasses import dataclass
from typing import ClassVar

from .. import RandomLayers


@dataclass(kw_only=True)
class RandomCompact(RandomLayers):
    """`random-layers`, with positions as PyramidDrop, SparseVLM and AdaptInfer have them."""

    positions: ClassVar[str] = "compact"

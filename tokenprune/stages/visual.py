"""Which positions of a forward are visual, and of which image, tile or video."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..adapters import Features, Layout
from ..errors import InputError, UnsupportedModelError
from .cache import state_of
from .checks import Checks
from .features import rows_of
from .parts import Parts

# The arguments that bring a modality; others (tiles, masks) may come again with later calls and mean nothing there.
PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


@dataclass
class Item:
    """One image, tile or video of one sample.

    Attributes:
        sample: row of the batch.
        image: its number among those of the batch; tiles of one image share it.
        modality: "image" or "video".
        slots: [n] long on the CPU, its positions in this call's segment, ascending.
        layout: what each of them is.
        features: the encoding it came from, and
        first: its first row there.
    """

    sample: int
    modality: str
    slots: Tensor
    layout: Layout
    features: Features
    first: int
    image: int = 0


@dataclass
class Call:
    """What one forward knows between the outer module and the decoder.

    What lies on the CPU was fetched before the tower ran: from there to the first layer nothing waits for the device.

    Attributes:
        kwargs: of the outer module.
        masks: modality -> [B, L] bool on the CPU.
        mask: [B, past + L] over cache slots, None where all are valid.
        seen: the same as bool on the CPU.
        ids: [B, L] on the CPU, None where there are none.
        encoded: modality -> of `mm_encoder_outputs` as they came in.
        full: its logits must have the prompt's length.
        features: of the towers that ran inside this forward.
        own: [B, L] bool on the CPU, positions of units; `shared` where one belongs to two of them.
        engaged: the decoder was called with this forward's visual tokens.
        wanted: the budget asks to remove something.
        clean: no padding that cannot go, in the slots before this call or behind its own first token.
        note: remembers the cut with a cache.
        checks: that wait for the device.
        outcome: what `report` will tell, once the decoder is through.
    """

    kwargs: dict[str, Any]
    masks: dict[str, Tensor]
    mask: Tensor | None
    seen: Tensor | None
    ids: Tensor | None
    encoded: dict[str, Features] = field(default_factory=dict)
    full: bool = False
    features: list[Features] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    own: Tensor | None = None
    shared: bool = False
    engaged: bool = False
    wanted: bool = False
    clean: bool = True
    cut: Any = None
    note: Callable[[Any], None] | None = None
    checks: Checks = field(default_factory=Checks)
    outcome: Any = None

    @cached_property
    def visual(self) -> Tensor:
        """[B, L] bool on the CPU"""
        return torch.stack(list(self.masks.values())).any(0)

    @cached_property
    def real(self) -> Tensor:
        """[B, L] bool on the CPU, False at padding."""
        return torch.ones_like(self.visual) if self.seen is None else self.seen[:, -self.visual.shape[1] :]

    @cached_property
    def stays(self) -> Tensor:
        """[B, L] bool on the CPU, all but left padding, which can always go."""
        return self.real | (self.real.cumsum(1) > 0)

    @property
    def words(self) -> int:
        """Of text behind the last visual token, at most in any sample."""
        behind = self.visual.long().flip(1).cumsum(1).flip(1) == 0
        return int((self.real & behind).sum(1).max())

    @property
    def plain(self) -> bool:
        """There is a mask, and it says nothing: all tokens are valid."""
        return self.seen is not None and bool(self.seen.all())

    def is_clean(self, cache: Any) -> bool:
        """See `clean`; from the cache as it is before this call."""
        if self.seen is not None:
            return bool(self.seen[:, : -self.real.shape[1]].all()) and torch.equal(self.real, self.stays)
        state = state_of(cache)
        return state is None or state.all_valid


def modalities(kwargs: dict[str, Any]) -> list[str]:
    """Modalities this very call brings. A placeholder id that the model generated itself is no visual token."""
    encoded = kwargs.get("mm_encoder_outputs") or {}
    return [
        modality
        for modality, names in PIXELS.items()
        if encoded.get(modality) is not None or any(kwargs.get(name) is not None for name in names)
    ]


def placeholder_masks(parts: Parts, kwargs: dict[str, Any], present: list[str]) -> dict[str, Tensor]:
    """modality -> [B, L] bool on the CPU; by id, or by embedding where the caller passed `inputs_embeds`.

    Args:
        kwargs: of the outer module; ids may lie on the CPU, where comparing them waits for nothing.
    """
    masks = {}
    for modality in present:
        mask = _placeholders(parts, kwargs, modality)
        if modality == "video" and "image" not in present and (mask is None or not mask.any()):
            mask = _placeholders(parts, kwargs, "image")  # some families write frames with the placeholder of images
        if mask is not None:
            masks[modality] = mask.cpu()
    return masks


def has_placeholder(parts: Parts, kwargs: dict[str, Any]) -> bool:
    """Whether a call has placeholders of any modality, with images or without."""
    masks = [_placeholders(parts, kwargs, modality) for modality in ("image", "video")]
    return any(mask is not None and bool(mask.any()) for mask in masks)


def _placeholders(parts: Parts, kwargs: dict[str, Any], modality: str) -> Tensor | None:
    token, ids, embeds = parts.placeholder(modality), kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if token is None:
        return None
    if ids is not None:
        return ids == token
    return (embeds == parts.model.get_input_embeddings()(torch.tensor(token, device=embeds.device))).all(-1)


def _features(call: Call, modality: str) -> Features:
    """The encoding that the placeholders of a modality are filled from."""
    if modality in call.encoded:
        return call.encoded[modality]
    encoded = (call.kwargs.get("mm_encoder_outputs") or {}).get(modality)
    if encoded is None:  # the tower ran inside this forward; images before videos
        own = [features for features in call.features if features.modality == modality]
        return own[0] if own else replace(call.features[-1], modality=modality)
    if (features := getattr(encoded, "_tokenprune", None)) is not None:  # it ran inside, and left its output there
        return features
    if len(rows := rows_of(encoded)) == 1 and getattr(encoded, "last_hidden_state", None) is None:
        raise UnsupportedModelError(
            "prefill_chunk_size splits images over several forwards, and a policy must see each whole: generate "
            "without chunked prefill."
        )
    return Features(modality=modality, rows=rows)


def find_items(call: Call, parts: Parts) -> list[Item]:
    """All images, tiles and videos of a call, by sample and place.

    Feature row i fills the i-th placeholder of its modality in (sample, position) order, which transformers itself
    relies on. Beams and returned sequences repeat the images of each prompt for samples next to each other. An empty
    list means that rows and placeholders do not match; the model says so itself.
    """
    items: list[Item] = []
    for modality, mask in call.masks.items():
        features = _features(call, modality)
        layouts = _layouts(parts, features)
        if modality == "video" and (left := call.kwargs.get(parts.adapter.row_mask)) is not None:
            rows = left.cpu().bool().split([len(layout) for layout in layouts])
            layouts = [layout.subset(keep) for layout, keep in zip(layouts, rows, strict=True)]
        places = [row.nonzero()[:, 0] for row in mask]
        total, encoded = sum(map(len, places)), sum(map(len, layouts))
        if not encoded or total % encoded or len(places) % (total // encoded):
            if sum(features.rows) == total:
                raise UnsupportedModelError(
                    f"the encoder of {parts.adapter.model_type!r} answered {total} rows where {encoded} were expected: "
                    "this transformers version encodes differently, please report it."
                )
            return []
        times, row, rest = total // encoded, 0, iter(layouts)
        for prompt in range(0, len(places), times):
            start = 0
            while start < len(places[prompt]):
                layout = next(rest, None)
                if layout is None:
                    return []
                for sample in range(prompt, prompt + times):
                    slots = places[sample][start : start + len(layout)]
                    if len(slots) != len(layout):
                        return []
                    items.append(Item(sample, modality, slots, layout, features, row))
                start, row = start + len(layout), row + len(layout)
    items = [item for item in items if len(item.slots)]
    items.sort(key=lambda item: (item.sample, int(item.slots[0])))
    return _number(items, call, parts)


def _layouts(parts: Parts, features: Features) -> list[Layout]:
    try:
        layouts = parts.adapter.layouts(parts.config, features)
        if features.arguments or sum(map(len, layouts)) == sum(features.rows):
            return layouts
        missing = "how the model packed them"
    except (KeyError, StopIteration) as error:
        missing = str(error) or "their pixels' shape"
    raise InputError(
        f"mm_encoder_outputs were encoded before the model was wrapped, and {missing} is needed to tell their images "
        "apart: pass pixel_values, or encode after wrap."
    )


def _number(items: list[Item], call: Call, parts: Parts) -> list[Item]:
    """Number the images of the batch; tiles of one image share a number."""
    ids, embeds = call.ids, call.kwargs.get("inputs_embeds")

    def before(item: Item) -> Hashable:
        """The token before an item, or its embedding where there are no ids; None where nothing is before it."""
        slot = int(item.slots[0]) - 1
        if slot < 0:
            return None
        return tuple(embeds[item.sample, slot].tolist()) if ids is None else int(ids[item.sample, slot])

    join, marks = parts.adapter.join, {}
    for item in items:
        if item.modality == "image" and (join == "global" or item.sample not in marks):
            marks[item.sample] = before(item)
    image = -1
    for i, item in enumerate(items):
        previous = items[i - 1] if i else None
        joined = previous is not None and (previous.sample, previous.modality) == (item.sample, item.modality)
        if joined:
            gap = int(item.slots[0]) - int(previous.slots[-1]) - 1
            joined = _is_joined(join, item.modality, gap, before(previous), before(item), marks.get(item.sample))
        image += not joined
        item.image = image
    return items


def as_videos(items: list[Item]) -> list[Item]:
    """The images of each sample as frames of one video.

    Raises:
        InputError: they are no frames.
    """
    first: dict[int, Item] = {}
    seen: set[int] = set()
    videos = {item.sample for item in items if item.modality == "video"}
    for item in items:
        if item.modality == "image" and item.sample in videos:
            raise InputError(
                f"images_are_frames=True, and sample {item.sample} has a video beside its images: give frames or a "
                "video."
            )
        if item.modality != "image":
            continue
        grids = item.layout.grids
        one = first.setdefault(item.sample, item)
        tiles = item.image in seen
        seen.add(item.image)
        if tiles or len(grids) != 1 or grids[0] is None or grids != one.layout.grids:
            raise InputError(
                f"images_are_frames=True, and the images of sample {item.sample} have crops or differ in size (grids "
                f"{one.layout.grids} and {grids}): give frames of one size, each encoded whole."
            )
    return [
        replace(item, modality="video", image=first[item.sample].image) if item.modality == "image" else item
        for item in items
    ]


def _is_joined(join: str, modality: str, gap: int, mark_before: Hashable, mark: Hashable, end: Hashable) -> bool:
    """Whether an item belongs to the image of the one before it.

    Args:
        gap: tokens between them.
        mark_before, mark: the tokens before the two items.
        end: the token before the last (join="global") or first (join="first") item of the sample.
    """
    if modality == "video":  # MiniCPM answers frames apart, with an end and a start token between
        return join == "first" and gap <= 2
    if join == "global":
        return mark_before is not None and mark_before != end
    if join == "first":
        return mark is not None and mark != end
    return (join == "run" and gap == 0) or (join == "near" and gap <= 1)


def keys_of(call: Call, items: list[Item]) -> list[int]:
    """One integer per item that depends on its sample's text and its place there, not on the batch or padding."""
    ranks: dict[int, int] = {}
    order = []
    for item in items:
        order.append(ranks.setdefault(item.sample, 0))
        ranks[item.sample] += 1
    if call.ids is None:
        return order
    text = call.real & ~call.visual
    prompts = {sample: call.ids[sample][text[sample]].numpy().tobytes() for sample in ranks}
    return [zlib.crc32(prompts[item.sample], rank) for item, rank in zip(items, order, strict=True)]

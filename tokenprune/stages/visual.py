"""Which positions of a forward are visual, and of which image or video."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from .parts import Parts

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass
class TowerCall:
    """One call of the adapter's tower module.

    Attributes:
        lengths: rows of every image or video.
        encoder: [rows, d_v] features that entered the projector, where the adapter names one and a policy asked.
        storage: address of the memory of the output, by which the rows are recognised when they come back.
    """

    lengths: list[int]
    encoder: Tensor | None
    storage: int


@dataclass
class Item:
    """One image or video of one sample.

    Attributes:
        sample: row of the batch.
        ordinal: its number among the images and videos of the sample.
        modality: "image" or "video".
        slots: [n] long on the CPU, its positions in this call's segment, ascending.
        encoder: [n, d_v] tower features as they entered the projector, None if not captured for this image.
    """

    sample: int
    ordinal: int
    modality: str
    slots: Tensor
    encoder: Tensor | None = None


@dataclass
class Call:
    """What one forward knows between the outer module and the decoder."""

    kwargs: dict[str, Any]
    masks: dict[str, Tensor]  # modality -> [B, L] bool on the CPU
    mask: Tensor | None  # [B, past + L], over cache slots
    tower: list[TowerCall]
    seen: bool = False  # the decoder was called with this forward's visual tokens
    wanted: bool = False  # the budget asks to remove something
    cut: bool = False
    note: Callable[[Any], None] | None = None  # remembers the cut with a cache

    @property
    def visual(self) -> Tensor:
        """[B, L] bool on the CPU"""
        return torch.stack(list(self.masks.values())).any(0)

    @property
    def segment_mask(self) -> Tensor | None:
        """[B, L], the part of `mask` that is about this call's tokens"""
        length = next(iter(self.masks.values())).shape[1]
        return None if self.mask is None else self.mask[:, -length:]


def modalities(kwargs: dict[str, Any]) -> list[str]:
    """Modalities this very call brings. A placeholder id that the model generated itself is no visual token."""
    encoded = kwargs.get("mm_encoder_outputs") or {}
    return [name for name, key in PIXELS.items() if kwargs.get(key) is not None or encoded.get(name) is not None]


def placeholder_masks(parts: Parts, kwargs: dict[str, Any], present: list[str]) -> dict[str, Tensor]:
    """modality -> [B, L] bool on the CPU; by id, or by embedding where the caller passed `inputs_embeds`."""
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    masks = {}
    for modality in present:
        token = parts.placeholder(modality)
        if ids is not None:
            mask = ids == token
        else:
            placeholder = parts.model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
            mask = (embeds == placeholder).all(-1)
        masks[modality] = mask.cpu()
    return masks


def _lengths(call: Call, modality: str) -> tuple[list[int], list[TowerCall]]:
    """Rows of every image (or video), and the tower calls they came from, empty if those are not known."""
    encoded = (call.kwargs.get("mm_encoder_outputs") or {}).get(modality)
    if encoded is None:  # the tower ran inside this forward; images before videos
        both = len(call.masks) > 1 and len(call.tower) > 1
        calls = [call.tower[0 if modality == "image" else -1]] if both else call.tower
        return [n for one in calls for n in one.lengths], calls
    features = encoded.pooler_output
    lengths = [feature.numel() // feature.shape[-1] for feature in features]
    sliced = len(lengths) == 1 and getattr(encoded, "last_hidden_state", None) is None
    mask = call.masks[modality]
    if sliced and bool(mask[:, 0].any() | mask[:, -1].any()):
        raise UnsupportedModelError(
            "prefill_chunk_size splits an image over several forwards, and a policy must see it whole: generate "
            "without chunked prefill."
        )
    storages = {feature.untyped_storage().data_ptr() for feature in features}
    return lengths, [one for one in call.tower if one.storage in storages]


def find_items(call: Call) -> list[Item]:
    """All images and videos of a call, by sample and place.

    Feature row i fills the i-th placeholder of its modality in (sample, position) order, which transformers itself
    relies on. An empty list means that rows and placeholders do not match; the model says so itself.
    """
    items: list[Item] = []
    for modality, mask in call.masks.items():
        lengths, calls = _lengths(call, modality)
        place = mask.nonzero()
        if sum(lengths) != len(place):
            return []
        found = []
        for start, stop in pairwise([0, *accumulate(lengths)]):
            sample = place[start:stop, 0]
            if len(sample) == 0 or int(sample[0]) != int(sample[-1]):
                return []
            found.append(Item(int(sample[0]), 0, modality, place[start:stop, 1]))
        _assign_encoder(found, calls)
        items += found
    items.sort(key=lambda item: (item.sample, int(item.slots[0])))
    counts: dict[int, int] = {}
    for item in items:
        item.ordinal = counts.setdefault(item.sample, 0)
        counts[item.sample] += 1
    return items


def _assign_encoder(items: list[Item], calls: list[TowerCall]) -> None:
    """Give every image the tower features it came from.

    Beams and returned sequences repeat the images of each sample next to each other, while the tower saw each once.
    """
    lengths = [n for one in calls for n in one.lengths]
    if not lengths or len(items) % len(lengths) or any(one.encoder is None for one in calls):
        return
    times = len(items) // len(lengths)
    rows = torch.cat([one.encoder for one in calls]).split(lengths)
    by_prompt: dict[int, list[Item]] = {}
    for item in items:
        by_prompt.setdefault(item.sample // times, []).append(item)
    first = 0
    for group in by_prompt.values():
        images = len(group) // times
        for i, item in enumerate(group):
            item.encoder = rows[first + i % images]
        first += images


def keys_of(call: Call, items: list[Item]) -> list[int]:
    """One integer per image that depends on its sample's text and its place there, not on the batch or padding."""
    ids = call.kwargs.get("input_ids")
    if ids is None:
        return [item.ordinal for item in items]
    ids, visual = ids.cpu(), call.visual
    text = ~visual
    if call.segment_mask is not None:
        text &= call.segment_mask.cpu().bool()
    prompts = {sample: ids[sample][text[sample]].numpy().tobytes() for sample in {item.sample for item in items}}
    return [zlib.crc32(prompts[item.sample], item.ordinal) for item in items]

"""What a frozen vision-language model tells about a batch: what a policy would see, attention, and its own answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters import lookup, supported
from ..calibrate.watch import Watch
from ..errors import InputError, UnsupportedModelError
from ..layers import Attention, Event, LayerTokens
from ..policies import ProjectorPolicy
from ..stages.parts import find_parts
from ..tokens import Selection, VisualTokens
from ..wrap import wrap
from .data import Encoded
from .masks import retention_mask


@dataclass(kw_only=True)
class _Look(ProjectorPolicy):
    """Notes what a policy in front of the decoder is shown of every image, and keeps it whole."""

    name: ClassVar[str] = "look"
    needs: ClassVar = frozenset({"features", "text"})

    keep: int | float | None = 1
    seen: list[VisualTokens] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return False  # so that it is asked image by image, in their order, and may keep all

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        self.seen.append(tokens)
        return Selection.subset(torch.arange(tokens.shape[1], device=tokens.features.device)[None])


@dataclass(kw_only=True)
class _Guide(Watch):
    """Notes the attention that visual tokens get from the text behind them at one layer."""

    layer: float = 0.5
    seen: list[Tensor] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return False

    def events(self, depth: int) -> tuple[Event, ...]:
        layer = min(int(self.layer * depth), depth - 2)
        return (Event(drop=layer + 1, score=layer, rows="text"),)

    def score(self, attention: Attention, event: Event) -> Tensor:
        return attention.total() / (attention.heads * attention.count())

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        self.seen.append(tokens.scores)
        return super().select(tokens, k)


@dataclass(frozen=True)
class Group:
    """G images of N tokens each.

    Attributes:
        tokens: what a policy would be shown of them, with the text of the prompt without the answer.
        places: [G, N, 2], (sample, position) in the batch.
        attention: [G, N] that they get, where the teacher notes it.
    """

    tokens: VisualTokens
    places: Tensor
    attention: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A batch as the frozen model sees it.

    Attributes:
        groups: images of equal size and shape, batched.
        logits: [n, V] of the answers, unpruned; targets: [n] ids.
    """

    groups: list[Group]
    logits: Tensor
    targets: Tensor

    @property
    def places(self) -> Tensor:
        """[V, 2] of all visual tokens, group by group."""
        return torch.cat([group.places.flatten(0, 1) for group in self.groups])


class Teacher:
    """A frozen model that is asked twice about a batch: as it is, and with soft retention of its visual tokens.

    The tower runs once: the decoder alone goes over what it was given again. Gradients flow through it to the log
    gates, so its activations are kept; its weights take none.

    Args:
        guide: layer, as a share of the depth, whose attention is noted; None: of none.
    """

    def __init__(self, model: nn.Module, *, guide: float | None = None):
        self.model, self.parts = model, find_parts(model, lookup, supported())
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise UnsupportedModelError(
                f"model={type(model).__name__} has no words to answer with: give one with a head."
            )
        self._look, self._guide = _Look(), None if guide is None else _Guide(layer=guide)
        self._given: dict[str, Any] = {}
        self._answer: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[Teacher]:
        """Frozen, with hooks, and with an attention whose mask takes gradients; as it was afterwards."""
        decoder, asked = self.parts.decoder, [one.requires_grad for one in self.model.parameters()]
        attention = self.parts.attention
        self.model.requires_grad_(False)
        # flash attention takes no bias, and the backward of sdpa is slow on a CPU
        decoder.set_attn_implementation("eager" if self.model.device.type == "cpu" else "sdpa")
        noted = decoder.register_forward_pre_hook(self._note, with_kwargs=True)
        self._handle = None
        try:
            watching = [one for one in (self._look, self._guide) if one is not None]
            with wrap(self.model, watching, logits="kept") as self._handle:
                yield self
        finally:
            noted.remove()
            decoder.set_attn_implementation(attention)
            for one, wanted in zip(self.model.parameters(), asked, strict=True):
                one.requires_grad_(wanted)
            self._given = {}

    def _note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._handle is not None and self._handle.enabled:
            self._given = {**kwargs, "past_key_values": None, "use_cache": False}

    def lesson(self, batch: Encoded) -> Lesson:
        """One forward without gradients.

        Raises:
            InputError: no image has tokens to choose from.
        """
        self._look.seen.clear()
        if self._guide is not None:
            self._guide.seen.clear()
        self._handle.enabled = True
        with torch.no_grad():
            output = self.model(**batch.inputs, use_cache=False)
        self._handle.enabled = False
        units = [unit for unit in self._handle.report().units if unit.total > 1]
        if not units:
            raise InputError("data: no picture of this batch has more than one visual token to choose from.")
        self._answer = batch.answer
        answered = batch.answer.sum(1).tolist()
        noted = [None] * len(units) if self._guide is None else self._guide.seen
        groups: dict[Any, list[tuple[Tensor, Group]]] = {}
        for tokens, attention, unit in zip(self._look.seen, noted, units, strict=True):
            places = torch.stack([torch.full_like(unit.slots, unit.sample), unit.slots], -1).to(tokens.features.device)
            text = tokens.text[:, : tokens.text.shape[1] - answered[unit.sample]]  # a policy never sees the answer
            one = (text, Group(tokens, places[None], attention))
            groups.setdefault((unit.total, tokens.grid), []).append(one)
        return Lesson(
            groups=[_joined(several) for several in groups.values()],
            logits=output.logits[:, :-1][batch.answer[:, 1:]],
            targets=batch.inputs["input_ids"][:, 1:][batch.answer[:, 1:]],
        )

    def check(self, lesson: Lesson) -> None:
        """That the last lesson is told again as it was where all gates are open.

        Raises:
            UnsupportedModelError: it is not, as with layers that read no mask, or masks of their own.
        """
        places = lesson.places
        with torch.no_grad():
            again = self.retold(places, torch.zeros(len(places), device=places.device)).float()
        dense = lesson.logits.float()
        off = float((again - dense).norm() / (dense - dense.mean(-1, keepdim=True)).norm())
        if not off < (1e-3 if lesson.logits.dtype == torch.float32 else 5e-2):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} answers otherwise ({off:.1%} off) when its decoder is given one mask for "
                "all layers, so soft retention would teach about another model: it cannot be trained for."
            )

    def retold(self, places: Tensor, log_gates: Tensor) -> Tensor:
        """Logits of the answers [n, V] of the last lesson, with log gates [V] added to the attention to visual keys
        at [V, 2] (sample, position)."""
        x = self._given["inputs_embeds"]
        mask = retention_mask(self._given.get("attention_mask"), places, log_gates, x)
        hidden = self.parts.decoder(**{**self._given, "attention_mask": mask}).last_hidden_state
        return self.head(hidden[:, :-1][self._answer[:, 1:]])


def _joined(several: list[tuple[Tensor, Group]]) -> Group:
    rows, groups = zip(*several, strict=True)
    text = nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True)
    lengths = torch.tensor([row.shape[1] for row in rows], device=text.device)[:, None]
    tokens = VisualTokens(
        features=torch.cat([one.tokens.features for one in groups]),
        text=text,
        text_mask=torch.arange(text.shape[1], device=text.device) < lengths,
        grid=groups[0].tokens.grid,
    )
    noted = [one.attention for one in groups if one.attention is not None]
    return Group(tokens, torch.cat([one.places for one in groups]), torch.cat(noted) if noted else None)

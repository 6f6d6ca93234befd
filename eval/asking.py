"""Asking the embedded model many questions, dense or pruned, without encoding a picture more often than needed.

Answers are one word, so the first generated token decides, which `check_against_generate` compares with `generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .. import Handle, LayerPolicy, Policy, ProjectorPolicy, Report, Selection, VisualTokens, wrap
from ..adapters import lookup, supported
from ..budget import Budget
from ..stages.parts import find_parts
from ..tokens import Tap
from . import shapes
from .inside import Inside

BATCH = 50
TEXT = frozenset({"text", "instruction"})
OUTSIDE = TEXT | {"features"}  # needs that ready-made features serve; the rest is the tower's


@dataclass
class Batch:
    """B questions about P pictures.

    Attributes:
        owner: [B] long, the picture that each question is about.
        inputs: of the questions, as the processor makes them.
        pixels: [P, 3, H, W].
        encoding: what `get_image_features` says of the P pictures, noted by `wrap` as of its own.
        answers: [B] long, first token of the right answer.
        noted: what `encoding` holds of the tower.
    """

    samples: list[shapes.Sample]
    pictures: list[Image.Image]
    owner: Tensor
    inputs: dict[str, Tensor]
    pixels: Tensor
    encoding: BaseModelOutputWithPooling
    answers: Tensor
    noted: frozenset = frozenset()

    @property
    def features(self) -> list[Tensor]:
        """[N, D] of each question's picture."""
        return [self.encoding.pooler_output[i] for i in self.owner.tolist()]

    @property
    def total(self) -> int:
        """Visual tokens of a picture."""
        return len(self.encoding.pooler_output[0])

    def given(self) -> dict[str, Any]:
        """Arguments of the forward, with the pictures' pixels."""
        return {**self.inputs, "pixel_values": self.pixels[self.owner]}

    def ready(self, encoding: BaseModelOutputWithPooling) -> dict[str, Any]:
        """The same with the pictures encoded."""
        return {**self.inputs, "mm_encoder_outputs": {"image": repeated(encoding, self.owner)}}

    def encode(self, model: PreTrainedModel) -> BaseModelOutputWithPooling:
        """The pictures through the tower and the projector."""
        return model.get_image_features(pixel_values=self.pixels)


def encoded(model: PreTrainedModel, processor: ProcessorMixin, samples: Sequence[shapes.Sample]) -> Iterator[Batch]:
    """Batches with their pictures through the tower and the projector; a picture that samples share counts once."""
    for start in range(0, len(samples), BATCH):
        some = list(samples[start : start + BATCH])
        pictures = {id(one.image): one.image for one in some}
        numbers = {key: i for i, key in enumerate(pictures)}
        owner = torch.tensor([numbers[id(one.image)] for one in some])
        inputs, pixels = _processed(processor, some, [one.image for one in some])
        first = [owner.tolist().index(i) for i in range(len(pictures))]
        pixels = pixels[first].to(model.dtype)
        with wrap(model, "none"):
            encoding = model.get_image_features(pixel_values=pixels)
        answers = processor.tokenizer.convert_tokens_to_ids([one.question.answer for one in some])
        yield Batch(some, list(pictures.values()), owner, inputs, pixels, encoding, torch.tensor(answers))


def _processed(
    processor: ProcessorMixin, samples: list[shapes.Sample], images: list[Image.Image]
) -> tuple[dict[str, Tensor], Tensor]:
    text = [shapes.prompt(one.question.text) for one in samples]
    inputs = dict(processor(text=text, images=images, padding=True, return_tensors="pt"))
    return inputs, inputs.pop("pixel_values")


class Way:
    """One way of asking: the model as it is, dense.

    `with way.at(keep, batch): words = way.words(way.encoded(batch, keep))`
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor = model, processor

    @contextmanager
    def at(self, keep: float, batch: Batch) -> Iterator[None]:
        """Inside, the model answers this batch with that share of the tokens."""
        yield

    def given(self, batch: Batch, keep: float) -> dict[str, Any]:
        """Arguments of the forward, with the pictures' pixels."""
        return batch.given()

    def encoded(self, batch: Batch, keep: float) -> dict[str, Any]:
        """The same with the pictures encoded, where this transformers takes them so."""
        if not shapes.takes_features(self.model):
            return self.given(batch, keep)
        return batch.ready(batch.encoding)

    def words(self, arguments: dict[str, Any]) -> Tensor:
        """[B] first answer tokens."""
        return self.model(**arguments, logits_to_keep=1).logits[:, -1].argmax(-1)

    def kept(self, batch: Batch) -> int | float:
        """Visual tokens per picture in the last answer."""
        return batch.total


@dataclass(kw_only=True)
class OncePerPicture(ProjectorPolicy):
    """A policy that looks at no text, asked once for all questions about a picture: it would answer each the same.

    Attributes:
        policy: the one that is asked.
        owner: [G] long, the picture of each unit.
    """

    policy: ProjectorPolicy
    owner: Tensor

    @property
    def needs(self) -> frozenset:
        return self.policy.needs

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        first = torch.stack([(self.owner == i).nonzero()[0, 0] for i in range(int(self.owner.max()) + 1)])
        part = replace(
            tokens,
            features=tokens.features[first],
            encoder=None if tokens.encoder is None else tokens.encoder[first],
            tower={tap: tokens.tower[tap][first] for tap in self.needs if isinstance(tap, Tap)},
            image=tokens.image[first],
            keys=[tokens.keys[i] for i in first.tolist()],
        )
        chosen = self.policy.select(part, k)
        values = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
        return Selection(**{name: None if value is None else value[self.owner] for name, value in values.items()})


def once(policy: ProjectorPolicy | LayerPolicy, batch: Batch) -> ProjectorPolicy | LayerPolicy:
    """The policy, asked once per picture where that is all that it looks at."""
    shared = len(batch.pictures) < len(batch.samples)
    if not shared or not policy.needs or policy.needs & TEXT:  # one without needs may still differ by prompt: random
        return policy
    budget = {field.name: getattr(policy, field.name) for field in fields(Policy)}
    return OncePerPicture(policy=policy, owner=batch.owner, **budget)


class Pruned(Way):
    """A policy that `wrap` runs, with the positions given."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, policy: Policy, positions: str | None = None):
        super().__init__(model, processor)
        self.policy, self.positions = policy, positions
        self._handle: Handle | None = None
        self._noted: tuple[Batch, dict[str, Any]] | None = None

    def policies(self, keep: float, batch: Batch) -> list[Policy]:
        """What runs for that budget."""
        return [once(replace(self.policy, keep=keep), batch)]

    @contextmanager
    def at(self, keep: float, batch: Batch) -> Iterator[None]:
        with wrap(self.model, self.policies(keep, batch), positions=self.positions) as self._handle:
            if "instruction" in self.policy.needs:
                self._handle.instruction = [one.question.text for one in batch.samples]
            yield

    def encoded(self, batch: Batch, keep: float) -> dict[str, Any]:
        """What was encoded before serves all policies but those that look into the tower: these have it noted anew,
        once for all budgets of a batch."""
        if self.policy.needs <= OUTSIDE | batch.noted or not shapes.takes_features(self.model):
            return super().encoded(batch, keep)
        if self._noted is None or self._noted[0] is not batch:
            self._noted = batch, batch.ready(batch.encode(self.model))
        return dict(self._noted[1])

    def report(self) -> Report:
        """On the last answer."""
        return self._handle.report()

    def kept(self, batch: Batch) -> int | float:
        kept = [unit.kept for unit in self.report().units]
        return kept[0] if len(set(kept)) == 1 else sum(kept) / len(kept)


class Stacked(Pruned):
    """A policy inside the language model, alone or behind one in front.

    Attributes:
        spent: budget -> FLOPs of all batches that `kept` was asked about: dense, pruned, and of a policy in front alone
            with that budget.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, inside: Inside):
        super().__init__(model, processor, inside.policy if inside.front is None else inside.front)
        self.inside, self.spent = inside, {}
        self.shape = find_parts(model, lookup, supported()).decoder_shape()
        self._total = 0

    def policies(self, keep: float, batch: Batch) -> list[Policy]:
        self._keep, self._total = keep, batch.total
        return [once(one, batch) for one in self.inside.policies(keep, self.shape, batch.total)]

    def kept(self, batch: Batch) -> float:
        """Visual tokens per picture and layer, on average over the layers."""
        report, total = self.report(), batch.total
        cost, alone = report.cost(), Budget(self._keep).count(total)
        equal = sum(self.shape.flops(dense - total + alone) for dense, _ in report.lengths)
        before = self.spent.get(self._keep, (0, 0, 0))
        now = (cost["prefill_flops_dense"], cost["prefill_flops_pruned"], equal)
        self.spent[self._keep] = tuple(a + b for a, b in zip(before, now, strict=True))
        samples = range(len(report.lengths))
        read = sum(n * layers for i in samples for n, layers in report.stretches(i)) / self.shape.layers
        words = sum(dense - total for dense, _ in report.lengths)
        return (read - words) / len(samples)

    def facts(self, keep: float) -> dict[str, Any]:
        """What its row says besides: layers, tokens, and shares of the dense FLOPs, its own and of one in front."""
        dense, pruned, equal = self.spent[keep]
        return {
            "against": self.inside.against,
            "drops": list(self.inside.drops),
            "counts": list(self.inside.counts(keep, self.shape, self._total)),
            "flops": round(pruned / dense, 5),
            "flops_in_front": round(equal / dense, 5),
        }


def repeated(
    output: BaseModelOutputWithPooling, owner: Tensor, pixels: str = "pixel_values"
) -> BaseModelOutputWithPooling:
    """An encoding of P pictures or clips, with what was noted meanwhile, as if owner[i] had been given at place i.

    `pixels`: the argument that brought them.
    """
    rows, note = output.pooler_output, output._tokenprune
    order, count = owner.tolist(), len(rows)
    again = BaseModelOutputWithPooling(
        pooler_output=rows[owner] if isinstance(rows, Tensor) else [rows[i] for i in order]
    )

    def of_each(values: Tensor) -> Tensor:  # several rows of a clip, one for each frame
        return values.unflatten(0, (count, -1))[owner].flatten(0, 1)

    again._tokenprune = replace(
        note,
        arguments=note.arguments | {pixels: note.pixels.new_empty(len(order), *note.pixels.shape[1:])},
        rows=[note.rows[i] for i in order],
        entered=[of_each(values) for values in note.entered],
        tower={tap: [of_each(values) for values in calls] for tap, calls in note.tower.items()},
    )
    return again


class Resized(Way):
    """A policy of stage "processor": smaller pictures, for which the tower stretches its position embedding."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, policy: Policy):
        super().__init__(model, processor)
        self.policy = policy
        self._tokens = 0

    @contextmanager
    def at(self, keep: float, batch: Batch) -> Iterator[None]:
        embeddings = self.model.model.vision_tower.embeddings
        stretch = embeddings.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"interpolate_pos_encoding": True}), with_kwargs=True
        )
        try:
            yield
        finally:
            stretch.remove()

    def given(self, batch: Batch, keep: float) -> dict[str, Any]:
        full = tuple(reversed(batch.pixels.shape[-2:]))  # (width, height) that the dense model reads
        policy = replace(self.policy, keep=keep)
        small = [policy.image(picture, size=full) for picture in batch.pictures]
        images, (width, height) = self.processor.image_processor, small[0].size
        before = images.size
        images.size = {"height": height, "width": width}
        try:
            some = [small[i] for i in batch.owner.tolist()]
            inputs, pixels = _processed(self.processor, batch.samples, some)
        finally:
            images.size = before
        self._tokens = width * height // self.policy.multiple**2
        return {**inputs, "pixel_values": pixels.to(self.model.dtype)}

    def encoded(self, batch: Batch, keep: float) -> dict[str, Any]:
        arguments = self.given(batch, keep)
        if not shapes.takes_features(self.model):
            return arguments
        output = self.model.get_image_features(pixel_values=arguments.pop("pixel_values"))
        return {**arguments, "mm_encoder_outputs": {"image": output}}

    def kept(self, batch: Batch) -> int:
        return self._tokens


def way(model: PreTrainedModel, processor: ProcessorMixin, policy: Policy | Inside | None) -> Way:
    """How a policy is asked; None is the dense model."""
    if policy is None:
        return Way(model, processor)
    if isinstance(policy, Inside):
        return Stacked(model, processor, policy)
    return (Resized if policy.stage == "processor" else Pruned)(model, processor, policy)


def check_against_generate(model: PreTrainedModel, processor: ProcessorMixin, batch: Batch) -> None:
    """The first token of a forward must be the word that `generate` answers.

    Raises:
        RuntimeError: it is not.
    """
    images, questions = [one.image for one in batch.samples], [one.question.text for one in batch.samples]
    words = shapes.answer(model, processor, images, questions, BATCH)
    dense = Way(model, processor)
    ids = processor.tokenizer.convert_tokens_to_ids(words)
    if ids != dense.words(dense.encoded(batch, 1.0)).tolist():
        raise RuntimeError("the first token of a forward is not the first word that generate() answers.")

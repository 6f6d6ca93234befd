"""Asking the embedded video model about clips: batches that are encoded once for all policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .. import Policy, ProjectorPolicy, wrap
from ..tokens import Tap
from . import shapes
from .asking import BATCH, Batch, Way, repeated

PIXELS = "pixel_values_videos"
SEPARATORS = 1  # the newline row that ends a video: no visual token


@dataclass
class VideoBatch(Batch):
    """B questions about as many clips, whose pixels are made anew where they are asked for.

    Attributes:
        read: clips -> [B, T, 3, H, W].
    """

    read: Callable[[list], Tensor] | None = None

    @property
    def features(self) -> list[Tensor]:
        return list(self.encoding.pooler_output[:, : self.total])

    @property
    def total(self) -> int:
        return self.encoding.pooler_output.shape[1] - SEPARATORS

    def given(self) -> dict[str, Any]:
        return {**self.inputs, PIXELS: self.read(self.pictures)}

    def ready(self, encoding: BaseModelOutputWithPooling) -> dict[str, Any]:
        return {**self.inputs, "mm_encoder_outputs": {"video": encoding}}

    def encode(self, model: PreTrainedModel) -> BaseModelOutputWithPooling:
        return lean(model.get_video_features(**{PIXELS: self.read(self.pictures)}))


def encoded(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[shapes.VideoSample],
    policies: Sequence[Policy] = (),
) -> Iterator[VideoBatch]:
    """Batches with their clips through the tower and the projector; what these policies need of the tower is noted."""
    tower = [one for one in policies if isinstance(one, ProjectorPolicy) and any(isinstance(n, Tap) for n in one.needs)]
    noted = frozenset(need for one in tower for need in one.needs if isinstance(need, Tap))

    def read(clips: list) -> Tensor:
        return processor.video_processor(videos=clips, return_tensors="pt")[PIXELS].to(model.dtype)

    for start in range(0, len(samples), BATCH):
        some = list(samples[start : start + BATCH])
        inputs = texts(processor, some)
        answers = processor.tokenizer.convert_tokens_to_ids([one.question.answer for one in some])
        owner = torch.arange(len(some))
        batch = VideoBatch(
            some, [one.frames for one in some], owner, inputs, None, None, torch.tensor(answers), noted, read
        )
        with wrap(model, [replace(one, keep=0.5) for one in tower] or "none"):
            batch.encoding = batch.encode(model)
        yield batch


def texts(processor: ProcessorMixin, samples: list[shapes.VideoSample]) -> dict[str, Tensor]:
    """Arguments of the forward without pixels: the processor's own, with as many placeholders as the model has rows."""
    frames = samples[0].frames
    text = [shapes.video_prompt(one.question.text) for one in samples]
    inputs = dict(processor(text=text, videos=[frames] * len(text), padding=True, return_tensors="pt"))
    inputs.pop(PIXELS)
    return inputs


def lean(output: BaseModelOutputWithPooling) -> BaseModelOutputWithPooling:
    """Of an encoding what the language model reads and what was noted, apart from the tower's hidden states.

    Those that entered the projector are only counted: frames are pooled behind it, so that no row is a patch's own.
    """
    kept = repeated(output, torch.arange(len(output.pooler_output)), PIXELS)
    kept._tokenprune.entered = [values.to("meta") for values in kept._tokenprune.entered]
    return kept


def check_against_generate(model: PreTrainedModel, processor: ProcessorMixin, batch: VideoBatch) -> None:
    """The first token of a forward must be the word that `generate` answers.

    Raises:
        RuntimeError: it is not.
    """
    questions = [one.question.text for one in batch.samples]
    words = shapes.answer_video(model, processor, batch.pictures, questions, len(questions))
    dense = Way(model, processor)
    if processor.tokenizer.convert_tokens_to_ids(words) != dense.words(dense.encoded(batch, 1.0)).tolist():
        raise RuntimeError("the first token of a forward is not the first word that generate() answers.")

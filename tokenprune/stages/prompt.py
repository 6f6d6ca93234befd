"""The text a policy may look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UnsupportedPolicyError
from ..ops import sent
from .visual import Call


@dataclass(frozen=True)
class Prompt:
    """The text of every sample, as far as the policies asked for it.

    Attributes:
        embeds: per sample [m, D], the decoder's input embeddings of the instruction.
        strings: per sample the instruction.
    """

    embeds: list[Tensor] | None = None
    strings: list[str] | None = None


@dataclass
class PromptReader:
    """Finds the instruction of every sample.

    Attributes:
        model: for its input embeddings.
        tokenizer: of the model; None where no policy needs text as a string.
        instruction: what the user set instead of the whole prompt: one string, or one per sample.
    """

    model: Any
    tokenizer: Any = None
    instruction: str | list[str] | None = None

    def read(self, call: Call, x: Tensor, needs: frozenset[str]) -> Prompt:
        """The text of every sample: `instruction` if it is set, else all of the prompt that is not visual.

        Args:
            x: [B, L, D], the decoder's input.

        Raises:
            UnsupportedPolicyError: a policy needs a string and there is nothing to make it from.
        """
        text = call.real & ~call.visual
        strings = embeds = None
        if "instruction" in needs:
            strings = self._given(len(x)) or self._decoded(call, text)
        if "text" in needs:
            embeds = [row[sent(place.nonzero()[:, 0], x.device)] for row, place in zip(x, text, strict=True)]
            if self.tokenizer is not None and (lines := self._given(len(x))):
                embeds = [self._embedded(line, x) for line in lines]
        return Prompt(embeds=embeds, strings=strings)

    def _given(self, batch: int) -> list[str] | None:
        if self.instruction is None:
            return None
        lines = [self.instruction] if isinstance(self.instruction, str) else list(self.instruction)
        if not lines or batch % len(lines):
            raise UnsupportedPolicyError(
                f"handle.instruction has {len(lines)} lines for a batch of {batch}: give one, or one per sample."
            )
        return [line for line in lines for _ in range(batch // len(lines))]  # beams of a sample are neighbours

    def _decoded(self, call: Call, text: Tensor) -> list[str]:
        if self.tokenizer is None or call.ids is None:
            raise UnsupportedPolicyError(
                "the policy needs the instruction as text: pass wrap(..., tokenizer=processor.tokenizer) and call the "
                "model with input_ids, or set handle.instruction."
            )
        return [
            self.tokenizer.decode(row[place], skip_special_tokens=True)
            for row, place in zip(call.ids, text, strict=True)
        ]

    def _embedded(self, line: str, x: Tensor) -> Tensor:
        ids = sent(self.tokenizer(line, add_special_tokens=False)["input_ids"], x.device)
        return self.model.get_input_embeddings()(ids).to(x)

"""A frozen text encoder, run on input embeddings of choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidArgumentError, nearest
from ..stages.encoder import find_encoder

POOLS = ("mean", "first")


class FrozenEncoder:
    """What a text is worth to an encoder: its embedding, or the logits of the model's head.

    Args:
        model: of a family that stage `encoder` knows.
        pool: of a bare encoder, "mean" over tokens (sentence-transformers) or "first", the row of [CLS]. With a head
            its logits count, whatever this says.
    """

    def __init__(self, model: Any, *, pool: str = "mean"):
        self.parts = find_encoder(model)
        if pool not in POOLS:
            raise InvalidArgumentError(f"pool={pool!r} is not one of {', '.join(POOLS)}{nearest(pool, POOLS)}.")
        self.pool = pool
        self.headed = self.parts.model is not self.parts.encoder
        self._given: Tensor | None = None
        self._seen: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Frozen and in eval mode; as it was afterwards."""
        model, encoder = self.parts.model, self.parts.encoder
        modes = {module: module.training for module in model.modules()}
        asked = [one for one in model.parameters() if one.requires_grad]
        hook = encoder.embeddings.register_forward_hook(self._replaced)
        model.eval()
        for one in asked:
            one.requires_grad_(False)
        try:
            yield
        finally:
            hook.remove()
            for one in asked:
                one.requires_grad_(True)
            for module, mode in modes.items():
                module.training = mode

    def _replaced(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        self._seen = output.detach()
        return self._given

    @torch.no_grad()
    def read(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Input embeddings [B, L, D] and the answer [B, E] to whole texts, as a tokenizer encodes them."""
        answer = self._run(dict(inputs), inputs["attention_mask"])
        return self._seen, answer

    def answer(self, x: Tensor, real: Tensor) -> Tensor:
        """[B, E] float32 from input embeddings [B, L, D], whose places are in them; real: [B, L], False at padding."""
        ids = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)  # which nobody reads
        self._given = x
        try:
            return self._run({"input_ids": ids, "attention_mask": real.long()}, real)
        finally:
            self._given = None

    def _run(self, inputs: dict[str, Tensor], real: Tensor) -> Tensor:
        if self.headed:
            return self.parts.model(**inputs).logits.float()
        rows = self.parts.encoder(**inputs)[0].float()
        if self.pool == "first":
            return rows[:, 0]
        return (rows * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)

    def apart(self, answer: Tensor, teacher: Tensor) -> Tensor:
        """[B], 1 - cosine of two embeddings, or KL(teacher || answer) of logits."""
        if not self.headed:
            return 1 - F.cosine_similarity(answer, teacher, dim=-1)
        if teacher.shape[-1] == 1:  # a regression
            return (answer - teacher).square()[:, 0]
        taught = teacher.log_softmax(-1)
        return (taught.exp() * (taught - answer.log_softmax(-1))).sum(-1)

    def number(self, answer: Tensor, teacher: Tensor) -> Tensor:
        """[B], what is attributed: the embedding's part along the teacher's, or the logit of its class."""
        if self.headed:
            return answer.gather(1, teacher.argmax(1, keepdim=True))[:, 0]
        return (answer * F.normalize(teacher, dim=-1)).sum(-1)

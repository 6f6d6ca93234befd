"""Relevance of visual tokens to the instruction: parts that a policy is given, not policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, UnsupportedPolicyError
from ..ops import mean_cosine
from ..tokens import VisualTokens


@dataclass(kw_only=True)
class TextRelevance:
    """Mean cosine of a projected token with the decoder's input embeddings of the instruction. No extra model.

    The reading of "relevance" that implementations for models without a paired text tower use.
    """

    needs: ClassVar = frozenset({"features", "text"})

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, N] float32"""
        return mean_cosine(tokens.features, tokens.text, tokens.text_mask)


@dataclass(kw_only=True)
class ClipRelevance:
    """Likeness of a patch and the instruction in the joint space of the CLIP model that the vision tower comes from.

    Patch side: visual_projection(post_layernorm(h)) of the patch features h as they enter the projector, [N, P, d_v];
    text side: CLIP's pooled, projected embedding of the instruction, cut into segments of the tower's context length,
    each with its own begin and end tokens; the relevance is the mean cosine over segments, times `sign`.

    Attributes:
        clip: a `transformers.CLIPModel` of the same family as the vision tower (its text tower and projections are
            used).
        tokenizer: the tokenizer of its text tower.
        similarity: "cosine", or "dot", the product of the two vectors at their own lengths, as TRIM has it.
        patches: "mean" or "max" of the similarities of the P patches that a merger makes one token of (P = 1: no
            matter).
        sign: -1 as CDPruner's code has it for the released CLIP (dense CLIP similarity is anti-correlated with the
            object named); +1 for towers where it is not.
    """

    clip: Any
    tokenizer: Callable[..., Any]
    sign: int = -1
    patches: Literal["mean", "max"] = "mean"
    similarity: Literal["cosine", "dot"] = "cosine"
    needs: ClassVar = frozenset({"encoder", "instruction"})

    def __post_init__(self):
        if self.sign not in (-1, 1):
            raise InvalidArgumentError(f"sign={self.sign!r} is neither -1 nor 1: give one of them.")
        if self.patches not in ("mean", "max"):
            raise InvalidArgumentError(f"patches={self.patches!r} is neither 'mean' nor 'max': give one of them.")
        if self.similarity not in ("cosine", "dot"):
            raise InvalidArgumentError(
                f"similarity={self.similarity!r} is neither 'cosine' nor 'dot': give one of them."
            )

    @torch.no_grad()
    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, N] float32"""
        width = self.clip.config.vision_config.hidden_size
        if tokens.encoder.shape[-1] != width:
            raise UnsupportedPolicyError(
                f"clip is for towers of width {width} but this model's tower has width {tokens.encoder.shape[-1]}: "
                "give the CLIP model that the vision tower comes from."
            )
        parameter = next(self.clip.visual_projection.parameters())
        patches = self.clip.vision_model.post_layernorm(tokens.encoder.to(parameter.device, parameter.dtype))
        patches = self.clip.visual_projection(patches)
        text = {line: self._embed(line, parameter.device) for line in set(tokens.instruction)}
        rows = [self._compare(patch, text[line]) for patch, line in zip(patches, tokens.instruction, strict=True)]
        similarities = self.sign * torch.stack(rows).to(tokens.features.device)
        return similarities.mean(-1) if self.patches == "mean" else similarities.amax(-1)

    def _compare(self, patches: Tensor, text: Tensor) -> Tensor:
        """[N, P] float32 similarities of [N, P, c] patches with [segments, c], mean over segments."""
        if self.similarity == "dot":
            return patches.float() @ text.float().mean(0)
        return mean_cosine(patches.flatten(0, 1)[None], text)[0].view(patches.shape[:2])

    def _embed(self, instruction: str, device: torch.device) -> Tensor:
        """[segments, c]"""
        context = self.clip.config.text_config.max_position_embeddings
        ids = self.tokenizer(instruction, add_special_tokens=False)["input_ids"] or [self.tokenizer.eos_token_id]
        step = context - 2
        segments = [ids[start : start + step] for start in range(0, len(ids), step)]
        rows = []
        for segment in segments:
            row = [self.tokenizer.bos_token_id, *segment, self.tokenizer.eos_token_id]
            pooled = self.clip.text_model(input_ids=torch.tensor([row], device=device)).pooler_output
            rows.append(self.clip.text_projection(pooled)[0])
        return torch.stack(rows)

"""What a tiny model of a family is, and how it is fed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor

# Before this argument existed, `generate` repeated images one by one for beams and returned sequences, which mixes
# them up between samples with different image counts, and lost them in chunked prefill, dense or pruned.
PRE_ENCODES = "mm_encoder_outputs" in inspect.signature(transformers.LlavaForConditionalGeneration.forward).parameters
REPEATABLE = (2, 1) if PRE_ENCODES else (1, 1)

VOCABULARY, IMAGE, VIDEO, VISION_START, VISION_END, BREAK, GLOBAL = 160, 150, 151, 152, 153, 154, 155
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
    "projection_dim": 32,
}
SIGLIP = {
    **{name: value for name, value in CLIP.items() if name != "projection_dim"},
    "model_type": "siglip_vision_model",
    "vision_use_head": False,
}
SAM = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 4,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 48,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}

RECURRENT = SHARP = 1e-4  # a wrong position or mask costs 0.1 to 4

Pixels = tuple[dict[str, Tensor], list[list[int]]]


@dataclass(frozen=True)
class Family:
    """A tiny randomly initialised model and how to feed it.

    Attributes:
        name: the model type, with "-variant" behind it where a type has several.
        build: makes the model.
        pixels: maps images (or videos) per sample to the arguments they need and, for every one of them in sample
            order, its ids as the family's processor writes them: placeholders with their borders and separators.
        modality: what `pixels` makes, "image" or "video".
        extra: maps [B, L] ids to further arguments.
        attentions: the implementations its decoder has.
        tolerance: largest difference of logits that float32 noise explains; the default is noise of a decoder with
            plain attention whose logits spread over +-5. RECURRENT layers sum along the sequence, and SHARP attention
            (without scaling, or with large angles at shifted positions) magnifies it.
        apart: every run of placeholders counts as an image of its own (frames written as images, say).
        since: the first transformers whose class takes this config and these inputs, as far as it was tried.
        protected: maps the number of an image to those of its placeholders that hold no patch, where the model has no
            `image_newline` to tell them by.
    """

    name: str
    build: Callable[[], Any]
    pixels: Callable[[tuple[int, ...]], Pixels]
    modality: str = "image"
    extra: Callable[[Tensor], dict[str, Tensor]] = field(default=lambda ids: {})
    attentions: tuple[str, ...] = ("sdpa", "eager")
    tolerance: float = 2e-5
    apart: bool = False
    since: str = "5.17"
    protected: Callable[[int], list[int]] = field(default=lambda image: [])

    @property
    def model_type(self) -> str:
        return self.name.split("-")[0]

    @property
    def token(self) -> int:
        return VIDEO if self.modality == "video" else IMAGE

    def model(self, *, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str | None = None) -> Any:
        """A model of its own. Wide weights: a wrong mask, position or cache length moves logits by 0.1 to 4."""
        torch.manual_seed(seed)
        model = self.build()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1 and any(word in name for word in ("norm", "ln", "scale", "scaling", "lambda")):
                    parameter.add_(0.05 * noise)
                else:
                    parameter.copy_((0.12 if parameter.ndim > 1 else 0.05) * noise)
        model.set_attn_implementation(attention or self.attentions[0])
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model.eval().to(dtype)

    def inputs(self, images: tuple[int, ...] = (1,), *, seed: int = 3, dtype: torch.dtype = torch.float32) -> dict:
        """A left-padded batch; images[b] images in sample b, each with text before and after."""
        pixels, rows, _ = self._prompts(images, seed)
        length = max(map(len, rows))
        ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        pixels = {name: value.to(dtype) if value.is_floating_point() else value for name, value in pixels.items()}
        return {"input_ids": ids, "attention_mask": mask, **pixels, **self.extra(ids)}

    def places(self, images: tuple[int, ...]) -> list[list[tuple[int, int]]]:
        """For every image of such a batch the (sample, position) of its placeholders that hold patches."""
        _, rows, spans = self._prompts(images, 3)
        length, found = max(map(len, rows)), []
        for number, (b, start, stop) in enumerate(spans):
            places = [(b, length - len(rows[b]) + i) for i in range(start, stop) if rows[b][i] in (IMAGE, VIDEO)]
            places = [place for i, place in enumerate(places) if i not in self.protected(number)]
            cuts = [i for i in range(1, len(places)) if self.apart and places[i][1] > places[i - 1][1] + 1]
            found += [places[i:j] for i, j in pairwise([0, *cuts, len(places)])]
        return found

    def _prompts(self, images: tuple[int, ...], seed: int) -> tuple[dict, list[list[int]], list[tuple[int, int, int]]]:
        """Pixel arguments, ids per sample, and (sample, start, stop) of every image's block."""
        pixels, blocks = self.pixels(images)
        generator = torch.Generator().manual_seed(seed)
        rows, spans, block = [], [], iter(blocks)

        def words(n: int) -> list[int]:
            return torch.randint(5, 140, (n,), generator=generator).tolist()

        for sample, count in enumerate(images):
            row = words(5 - 2 * (sample % 2))
            for _ in range(count):
                start = len(row)
                row += next(block)
                spans.append((sample, start, len(row)))
                row += words(2)
            rows.append(row + words(4 + sample % 3))
        return pixels, rows, spans


def noise(*shape: int, seed: int = 7) -> Tensor:
    """Normal random numbers, the same for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(model_type: str, **changes: Any) -> dict[str, Any]:
    """The tiny decoder's config of another model type."""
    return {**TEXT, "model_type": model_type, **changes}


def types(ids: Tensor) -> dict[str, Tensor]:
    """`mm_token_type_ids` as processors make them: 1 at images, 2 at videos."""
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def bordered(lengths: list[int], token: int = IMAGE) -> list[list[int]]:
    """Placeholders between start and end tokens."""
    return [[VISION_START, *[token] * n, VISION_END] for n in lengths]

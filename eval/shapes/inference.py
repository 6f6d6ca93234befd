"""Load the embedded model and ask it questions."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from .language import PROMPT

CHECKPOINT = Path(__file__).parent / "checkpoint"


def load(dtype: torch.dtype = torch.float32, folder: Path = CHECKPOINT) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The trained model in eval mode, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(_existing(folder), dtype=dtype)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def load_clip(folder: Path = CHECKPOINT / "clip") -> tuple[CLIPModel, PreTrainedTokenizerBase]:
    """A CLIP with the same vision tower and a text tower for questions, in eval mode, and its tokenizer."""
    model = CLIPModel.from_pretrained(_existing(folder), dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _existing(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"no checkpoint in {folder}; train one with python -m tokenprune.eval.shapes.train --out {CHECKPOINT}"
        )
    return folder


def takes_features(model: PreTrainedModel) -> bool:
    """Whether this transformers takes encoded images (`mm_encoder_outputs`), so that each needs encoding only once."""
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def prompt(question: str) -> str:
    """The text that the processor turns into the sequence the model was trained on."""
    return PROMPT.format(question=question)


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    batch_size: int = 32,
) -> list[str]:
    """One word per image and question, greedily, in left-padded batches."""
    if len(images) != len(questions):
        raise ValueError(f"{len(images)} images and {len(questions)} questions; give one question per image")
    answers: list[str] = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        text = [prompt(question) for question in questions[part]]
        inputs = processor(text=text, images=list(images[part]), padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, dtype=model.dtype)
        generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        words = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [(word.split() or [""])[0] for word in words]
    return answers

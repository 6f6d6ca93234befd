"""Load the embedded model and ask it questions."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
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

from .language import PROMPT, VIDEO_PROMPT

CHECKPOINT = Path(__file__).parent / "checkpoint"
PREDICTOR = CHECKPOINT / "covipal"  # module trained for it by `tokenprune train covipal`
VIDEO_CHECKPOINT = Path(__file__).parent / "checkpoint_video"


def load(dtype: torch.dtype = torch.float32, folder: Path = CHECKPOINT) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The trained model in eval mode, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(existing(folder), dtype=dtype)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def load_clip(folder: Path = CHECKPOINT / "clip") -> tuple[CLIPModel, PreTrainedTokenizerBase]:
    """A CLIP with the same vision tower and a text tower for questions, in eval mode, and its tokenizer."""
    model = CLIPModel.from_pretrained(existing(folder), dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def load_video(
    dtype: torch.dtype = torch.float32, folder: Path = VIDEO_CHECKPOINT
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The trained video model in eval mode, and its processor, which needs torchvision."""
    model = AutoModelForImageTextToText.from_pretrained(existing(folder, "video_train"), dtype=dtype)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def existing(folder: Path, trainer: str = "train") -> Path:
    """The folder, if a checkpoint is there; `trainer`: the module that writes one."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"no checkpoint in {folder}; train one with python -m tokenprune.eval.shapes.{trainer} --out FOLDER"
        )
    return folder


def takes_features(model: PreTrainedModel) -> bool:
    """Whether this transformers takes encoded images (`mm_encoder_outputs`), so that each needs encoding only once."""
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def prompt(question: str) -> str:
    """The text that the processor turns into the sequence the model was trained on."""
    return PROMPT.format(question=question)


def video_prompt(question: str) -> str:
    """The same for a clip."""
    return VIDEO_PROMPT.format(question=question)


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    batch_size: int = 32,
) -> list[str]:
    """One word per image and question, greedily, in left-padded batches."""
    texts = [prompt(question) for question in questions]
    return _answers(model, processor, "images", images, texts, batch_size)


@torch.inference_mode()
def answer_video(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    clips: Sequence[np.ndarray],
    questions: Sequence[str],
    batch_size: int = 32,
) -> list[str]:
    """One word per clip and question, greedily, in left-padded batches.

    `clips`: frames as uint8 [T, height, width, 3] or as a list of pictures; T is the same for all clips of a batch.
    """
    clips = [np.stack([np.asarray(frame) for frame in clip]) for clip in clips]
    texts = [video_prompt(question) for question in questions]
    return _answers(model, processor, "videos", clips, texts, batch_size)


def _answers(
    model: PreTrainedModel, processor: ProcessorMixin, name: str, seen: Sequence, texts: list[str], batch_size: int
) -> list[str]:
    """`name`: what the processor calls that which is seen."""
    if len(seen) != len(texts):
        raise ValueError(f"{len(seen)} {name} and {len(texts)} questions; give one question for each")
    answers: list[str] = []
    for start in range(0, len(seen), batch_size):
        part = slice(start, start + batch_size)
        inputs = processor(text=texts[part], **{name: list(seen[part])}, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, dtype=model.dtype)
        generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        words = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [(word.split() or [""])[0] for word in words]
    return answers

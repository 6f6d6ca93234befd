"""Text encoders and texts by name, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoints import sentences_about, usable
from ..errors import InputError
from ..stages.encoder import find_encoder
from .text import paragraphs

PYDOC = "pydoc"


def load_encoder(model: str, device: str = "") -> tuple[Any, Any]:
    """A text encoder in eval mode and float32, with its head if it classifies, and its tokenizer.

    Raises:
        InputError: nothing there, or nothing that can be loaded.
        UnsupportedModelError: tokens cannot leave it.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    device = usable(device)
    disable_progress_bar()
    with sentences_about(model):
        config = AutoConfig.from_pretrained(model)
        classifies = any("ForSequenceClassification" in one for one in config.architectures or ())
        kind = AutoModelForSequenceClassification if classifies else AutoModel
        loaded, tokenizer = kind.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    find_encoder(loaded)
    return loaded.float().to(device).eval(), tokenizer


def read_texts(data: str) -> list[str]:
    """The lines of a file, or paragraphs of Python's reference manual for "pydoc".

    Raises:
        InputError: no file, or nothing in it.
    """
    if data == PYDOC:
        return paragraphs("train")
    try:
        texts = [line.strip() for line in Path(data).read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"data={data!r} cannot be read ({error}): give {PYDOC!r}, or a text file with a text in every line."
        ) from None
    if not texts:
        raise InputError(f"data={data!r} holds no text: give a text file with a text in every line.")
    return texts

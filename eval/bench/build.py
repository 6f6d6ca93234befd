"""What is measured: a model with random weights of a known shape, or a checkpoint, and the inputs of one sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import load, usable
from ...encoding import encode
from ...errors import InputError, InvalidArgumentError, nearest
from ...readers import open_image
from .shapes import SHAPES

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
SIDE = 672  # pixels of the picture drawn for a checkpoint
QUESTION = "What can be seen in this picture, how many things are there, and where are they?"


@dataclass(frozen=True)
class Subject:
    """A model and what it is given.

    Attributes:
        one: arguments of a forward for one sample.
        tokens: placeholders of its picture.
        tokenizer: for policies that read the question; None with random weights, which know no words.
        facts: for the result.
    """

    model: Any
    one: dict[str, Tensor]
    tokens: int
    tokenizer: Any
    sizes: list[tuple[int, int]] | None
    facts: dict[str, Any]

    def batch(self, size: int) -> dict[str, Tensor]:
        """The sample so many times."""
        return {name: value.repeat(size, *[1] * (value.ndim - 1)) for name, value in self.one.items()}


def from_shape(name: str, *, scale: float, dtype: str, device: str, attention: str, text: int, seed: int) -> Subject:
    """A model of that shape, its weights drawn on the device in the dtype, without a copy elsewhere.

    Args:
        scale: share of heads, layers and vocabulary, in (0, 1]; the picture stays as it is.
        text: tokens of the prompt beside the picture.

    Raises:
        InvalidArgumentError: an unknown name, or a value that is none of these.
        InputError: the attention implementation is not installed; the model does not fit.
    """
    import transformers

    if name not in SHAPES:
        raise InvalidArgumentError(f"shape={name!r} is not one of {', '.join(SHAPES)}{nearest(name, SHAPES)}.")
    if not 0 < scale <= 1:
        raise InvalidArgumentError(f"scale={scale} is outside (0, 1]: give 1 for the whole model, 0.1 for a small one.")
    device = usable(device)
    dtype = default_dtype(dtype, device)
    shape = SHAPES[name]
    config = shape.config(shape, scale)
    kind = transformers.AutoModelForImageTextToText
    torch.manual_seed(seed)
    with sentences(f"shape={name!r}", attention), torch.device(device):
        model = kind.from_config(config, dtype=DTYPES[dtype], attn_implementation=attention).eval()
    inputs = {key: _on(value, model) for key, value in shape.inputs(scale, text, seed).items()}
    facts = {
        "shape": name,
        "checkpoint": shape.checkpoint,
        "weights": "random",
        "scale": scale,
        "picture": shape.picture,
        "layers": config.get_text_config().num_hidden_layers,
        "hidden": config.get_text_config().hidden_size,
    }
    return Subject(model, inputs, shape.tokens, None, None, facts | _facts(model, dtype, attention))


def from_checkpoint(
    name: str, *, dtype: str, device: str, attention: str, text: int, seed: int, image: Path | None
) -> Subject:
    """A checkpoint, asked about a picture (drawn at random unless given) in about `text` tokens.

    Raises:
        InputError: nothing that can be loaded, no such picture, or the attention implementation is not installed.
        UnsupportedModelError: no vision-language model.
    """
    from PIL import Image

    with sentences(f"model={name!r}", attention):
        model, processor = load(name, dtype=dtype, device=device)
        model.set_attn_implementation(attention)
    torch.manual_seed(seed)
    noise = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8).numpy()
    picture = Image.fromarray(noise) if image is None else open_image(image)
    words = (QUESTION.split() * (1 + text // 8))[: max(1, round(0.8 * text))]  # a word is 1.2 tokens or so
    inputs, _ = encode(processor, model, " ".join(words), [picture])
    inputs = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    config = model.config
    names = ("image_token_id", "image_token_index", "image_patch_id")
    token = next((found for one in names if (found := getattr(config, one, None)) is not None), None)
    tokens = int((inputs["input_ids"] == token).sum())
    decoder = config.get_text_config()
    facts = {
        "shape": Path(name).name,
        "checkpoint": name,
        "weights": "the checkpoint's",
        "scale": 1.0,
        "picture": f"{picture.width} x {picture.height} pixels",
        "layers": decoder.num_hidden_layers,
        "hidden": decoder.hidden_size,
    }
    made = str(model.dtype).removeprefix("torch.")
    tokenizer = getattr(processor, "tokenizer", None)
    return Subject(model, inputs, tokens, tokenizer, [picture.size], facts | _facts(model, made, attention))


def _facts(model: Any, dtype: str, attention: str) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": count, "dtype": dtype, "attention": attention}


def _on(value: Tensor, model: Any) -> Tensor:
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def default_dtype(name: str, device: str) -> str:
    """`auto`: bfloat16, and float32 on a CPU, where many have no fast bfloat16."""
    if name == "auto":
        return "float32" if device.startswith("cpu") else "bfloat16"
    if name not in DTYPES:
        raise InvalidArgumentError(f"dtype={name!r} is not one of auto, {', '.join(DTYPES)}{nearest(name, DTYPES)}.")
    return name


@contextmanager
def sentences(what: str, attention: str = "") -> Iterator[None]:
    """Memory that is not there, and attention that is not installed, as a sentence."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"attention={attention!r} needs a package that is missing ({str(error).splitlines()[0].rstrip('.')}): "
            "install it, or give sdpa."
        ) from None
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
        if not short:
            raise
        raise InputError(
            f"{what} does not fit into the memory: give a smaller --batch or --scale, or a dtype of two bytes."
        ) from None

"""What the commands share: errors as sentences, pictures, policies and models by name, prompts."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .errors import InputError, InvalidArgumentError, TokenPruneError, UnsupportedModelError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from .policies import Policy

USER_ERROR = 2  # exit code


@contextmanager
def one_sentence():
    """An error that the user can mend becomes one sentence on stderr and exit code 2."""
    try:
        yield
    except TokenPruneError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USER_ERROR) from None


def open_image(path: Path) -> Image:
    """The picture in a file, decoded, RGB.

    Raises:
        InputError: no such file, no image, or only the beginning of one.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise InputError(f"image={str(path)!r} is no file: give the path of an image.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise InputError(f"image={str(path)!r} is not an image that Pillow can read: give a PNG or JPEG.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image={str(path)!r} cannot be decoded ({error}): give an intact file.") from None


def assignment(text: str) -> tuple[str, Any]:
    """`"theta=0.5"` -> ("theta", 0.5)"""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgumentError(f"--set {text!r} has no '=': give NAME=VALUE, such as theta=0.5.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def make_policy(name: str, fields: dict[str, Any]) -> Policy:
    """The policy `name` with these fields.

    Raises:
        TokenPruneError: unknown name or field, or a value the field cannot take.
    """
    from .registry import get_policy

    cls = get_policy(name)
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for field, value in fields.items():
        if field not in known:
            hint = nearest(field, known) or f": its fields are {', '.join(known)}"
            raise InvalidArgumentError(f"--set {field}={value} names no field of {name!r}{hint}.")
        if not _plain(hints[field], value):
            wanted = inspect.formatannotation(hints[field])
            raise InvalidArgumentError(
                f"--set {field}={value!r} is a {type(value).__name__}, the field takes {wanted}: give such a value, "
                "or wrap the model in Python."
            )
    return cls(**fields)


def load(model: str, *, dtype: str = "auto", device: str = "") -> tuple[Any, Any]:
    """A vision-language model in eval mode and its processor, from a folder or the hub.

    Raises:
        InputError: nothing there, or nothing that can be loaded.
        UnsupportedModelError: it takes no images.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    from transformers.utils.logging import disable_progress_bar

    dtypes = ("auto", "float32", "float16", "bfloat16")
    if dtype not in dtypes:
        raise InvalidArgumentError(f"dtype={dtype!r} is not one of {', '.join(dtypes)}{nearest(dtype, dtypes)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(f"device={device!r} cannot be used ({_line(error)}): try cpu.") from None
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(model)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise UnsupportedModelError(
                f"model={model!r} is a {config.model_type!r}, which takes no images: give a vision-language model."
            )
        processor = AutoProcessor.from_pretrained(model)
        loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError) as error:
        if Path(model).exists():
            raise InputError(f"model={model!r} holds no loadable checkpoint ({_line(error)}).") from None
        raise InputError(
            f"model={model!r} is neither a folder here nor a model that can be fetched from the hub: check the name."
        ) from None
    return loaded.to(device).eval(), processor


def with_images(processor: Any, prompt: str, images: int) -> str:
    """The prompt as the model reads it, one placeholder per image: by the chat template if there is one, else in front.

    Raises:
        InputError: the prompt has placeholders of its own, and not as many as images.
        UnsupportedModelError: the processor names no placeholder and has no chat template.
    """
    placeholder = getattr(processor, "image_token", None)
    if placeholder and (found := prompt.count(placeholder)):
        if found != images:
            raise InputError(
                f"prompt has {found} times {placeholder!r} for {images} images: give one per image, or none."
            )
        return prompt
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    if not placeholder:
        raise UnsupportedModelError(
            f"the processor {type(processor).__name__} has neither a chat template nor an image token: use the model's "
            "own prompt format from Python."
        )
    return placeholder * images + "\n" + prompt


def encode(processor: Any, model: Any, prompt: str, pictures: list[Image]) -> tuple[Any, bool]:
    """A forward's arguments for a prompt about pictures, and whether text was put around it.

    Raises:
        InputError: the prompt has placeholders of its own, and not as many as pictures.
        UnsupportedModelError: the processor names no placeholder and has no chat template.
    """
    text = with_images(processor, prompt, len(pictures))
    tokenizer = getattr(processor, "tokenizer", None)
    begun = text.startswith(getattr(tokenizer, "bos_token", None) or "\0")  # by the chat template
    inputs = processor(text=[text], images=pictures, return_tensors="pt", add_special_tokens=not begun)
    return inputs.to(model.device, dtype=model.dtype), text != prompt


def _plain(hint: Any, value: Any) -> bool:
    """Whether a value from the command line fits a field; none fits a field that takes an object or a function."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_plain(option, value) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)  # the policy itself suggests the nearest
    if typing.get_origin(hint) is tuple:
        return isinstance(value, (tuple, list)) and all(_plain(typing.get_args(hint)[0], one) for one in value)
    return hint in (int, float, bool, str, type(None)) and (
        type(value) is hint or (hint is float and type(value) is int)
    )


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")

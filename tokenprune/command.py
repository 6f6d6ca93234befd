"""What the commands share: errors as sentences, pictures, policies and models by name, prompts."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checkpoints import Classified, load, sentences_about
from .encoding import encode, encode_plain, frames_are_images
from .errors import InvalidArgumentError, TokenPruneError, nearest
from .readers import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from .policies import Policy
    from .video import Video
    from .wrap import Handle

USER_ERROR = 2  # exit code
SCHEDULES = {"keeps", "r", "keep_rate"}  # fields that say how many tokens stay, instead of a budget
LONGEST_EDGE = 1024  # pixels of a frame: about as many as video models read of one

ModelName = Annotated[str, typer.Option(help="Checkpoint folder or hub id of a vision-language model.")]
Frames = Annotated[int | None, typer.Option(help="Read so many frames at equal steps; 32 if --fps is missing, too.")]
Fps = Annotated[float | None, typer.Option(help="Read so many frames a second instead.")]
Start = Annotated[float, typer.Option(help="Read the video from this second on.")]
End = Annotated[float | None, typer.Option(help="Read it up to this second.")]
Size = Annotated[int, typer.Option(help="Longest edge of a frame, in pixels; larger ones are reduced at once.")]
ReaderName = Annotated[str, typer.Option(help="What reads video files: decord or pyav.")]
PolicyName = Annotated[str, typer.Option(help="Name of a policy, see `tokenprune list`.")]
Keep = Annotated[str, typer.Option(help="Budget: 64 (tokens) or 0.25 (share); 0.25 unless --set says how many.")]
Per = Annotated[str, typer.Option(help="What the budget is counted over: image, crop, frame or prompt.")]
Fields = Annotated[list[str] | None, typer.Option("--set", help="A field of the policy: theta=0.5.")]
Positions = Annotated[str, typer.Option(help="Of kept tokens: original or compact; else as the policy does.")]
DType = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:0; the default is the GPU if there is one.")]


@contextmanager
def one_sentence():
    """An error that the user can mend becomes one sentence on stderr and exit code 2."""
    try:
        yield
    except TokenPruneError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USER_ERROR) from None


def assignment(text: str) -> tuple[str, Any]:
    """`"theta=0.5"` -> ("theta", 0.5)"""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgumentError(f"--set {text!r} has no '=': give NAME=VALUE, such as theta=0.5.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def number(text: str) -> int | float:
    """`"64"` is a count, `"0.25"` a share.

    Raises:
        InvalidArgumentError: neither.
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise InvalidArgumentError(f"keep={text!r} is no number: give an int (tokens) or a float in (0, 1] (share).")


def budgeted(name: str, keep: str, per: str, fields: list[str] | None) -> Policy:
    """The policy as the command line asks for it, with a quarter of the tokens unless that says how many.

    Raises:
        TokenPruneError: unknown name or field, or a value the field cannot take.
    """
    given = dict(map(assignment, fields or []))
    scheduled = any(given.get(name) is not None for name in SCHEDULES)
    budget = {"keep": number(keep)} if keep else {} if scheduled else {"keep": 0.25}
    return make_policy(name, {**budget, "per": per, **given})


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
            raise InvalidArgumentError(f"{field}={value!r} names no field of {name!r}{hint}.")
        if not _plain(hints[field], value):
            wanted = inspect.formatannotation(hints[field])
            raise InvalidArgumentError(
                f"{field}={value!r} is a {type(value).__name__}, the field takes {wanted}: give such a value, "
                "or wrap the model in Python."
            )
    return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A wrapped model, its processor and what it is to be run on: `inputs`, made of `pictures` and `videos`."""

    model: Any
    processor: Any
    inputs: Any
    handle: Handle
    pictures: list[Image]
    videos: list[Video]

    def run(self) -> None:
        """One forward."""
        import torch

        with torch.inference_mode():
            if self.model.can_generate():
                self.model.generate(**self.inputs, max_new_tokens=1, do_sample=False)
            else:
                self.model(**self.inputs)


@contextmanager
def prepared(
    model: str,
    policy: Policy,
    prompt: str,
    images: Sequence[Path],
    videos: Sequence[Path],
    how: dict[str, Any],
    *,
    classifies: Classified = "",
    dtype: str,
    device: str,
    **options: Any,
) -> Iterator[Prepared]:
    """Reads images and videos, loads a model, encodes them for it, and wraps it for as long as it is used.

    Args:
        how: arguments of `read_video`. A classifier of videos says itself how many frames, where neither `frames` nor
            `fps` does.
        classifies: as of `load`.
        options: of `wrap`.
    """
    from .video import read_video
    from .wrap import wrap

    pictures = [open_image(path) for path in images]
    if classifies == "videos" and how["frames"] is None and how["fps"] is None:
        how = {**how, "frames": _clip_length(model)}
    read = [read_video(path, **how) for path in videos]
    loaded, processor = load(model, classifies=classifies, dtype=dtype, device=device)
    if not loaded.can_generate():
        with wrap(loaded, policy, **options) as handle:
            yield Prepared(loaded, processor, encode_plain(processor, loaded, pictures, read), handle, pictures, read)
        return
    inputs, placed = encode(processor, loaded, prompt, pictures, read)
    options |= {"images_are_frames": frames_are_images(inputs, pictures, read)}
    with wrap(loaded, policy, tokenizer=getattr(processor, "tokenizer", None), **options) as handle:
        handle.instruction = prompt if placed else None
        handle.image_sizes = None if read else [picture.size for picture in pictures]
        yield Prepared(loaded, processor, inputs, handle, pictures, read)


def _clip_length(model: str) -> int | None:
    """Frames that a classifier of videos takes, None where it does not say."""
    from transformers import AutoConfig

    with sentences_about(model):
        return getattr(AutoConfig.from_pretrained(model), "num_frames", None)


def _plain(hint: Any, value: Any) -> bool:
    """Whether a value from the command line fits a field; none fits a field that takes an object or a function."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_plain(option, value) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)  # the policy itself suggests the nearest
    if typing.get_origin(hint) in (tuple, list):
        kinds = typing.get_args(hint)
        if typing.get_origin(hint) is tuple and kinds[-1] is not ...:
            return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_plain, kinds, value))
        written = (tuple, list) if typing.get_origin(hint) is tuple else list
        return isinstance(value, written) and all(_plain(kinds[0], one) for one in value)
    return hint in (int, float, bool, str, type(None)) and (
        type(value) is hint or (hint is float and type(value) is int)
    )

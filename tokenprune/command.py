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
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .errors import InputError, InvalidArgumentError, TokenPruneError, UnsupportedModelError, nearest
from .readers import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from .policies import Policy
    from .video import Video
    from .wrap import Handle

USER_ERROR = 2  # exit code
SCHEDULES = {"keeps", "r", "keep_rate"}  # fields that say how many tokens stay, instead of a budget
LONGEST_EDGE = 1024  # pixels of a frame: about as many as video models read of one

Classified = Literal["", "images", "videos"]
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
            raise InvalidArgumentError(f"--set {field}={value} names no field of {name!r}{hint}.")
        if not _plain(hints[field], value):
            wanted = inspect.formatannotation(hints[field])
            raise InvalidArgumentError(
                f"--set {field}={value!r} is a {type(value).__name__}, the field takes {wanted}: give such a value, "
                "or wrap the model in Python."
            )
    return cls(**fields)


def load(model: str, *, classifies: Classified = "", dtype: str = "auto", device: str = "") -> tuple[Any, Any]:
    """A vision-language model in eval mode and its processor, from a folder or the hub.

    Args:
        classifies: also takes a classifier of these.

    Raises:
        InputError: nothing there, or nothing that can be loaded.
        UnsupportedModelError: none of these.
    """
    import torch
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.utils.logging import disable_progress_bar

    classifiers = {
        "images": (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, transformers.AutoModelForImageClassification),
        "videos": (auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING, transformers.AutoModelForVideoClassification),
    }
    dtypes = ("auto", "float32", "float16", "bfloat16")
    if dtype not in dtypes:
        raise InvalidArgumentError(f"dtype={dtype!r} is not one of {', '.join(dtypes)}{nearest(dtype, dtypes)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(f"device={device!r} cannot be used ({_line(error)}): try cpu.") from None
    disable_progress_bar()
    with sentences_about(model):
        config = transformers.AutoConfig.from_pretrained(model)
        if type(config) in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            kind = transformers.AutoModelForImageTextToText
        elif classifies and type(config) in classifiers[classifies][0]:
            kind = classifiers[classifies][1]
        else:
            found = next((what for what, (configs, _) in classifiers.items() if type(config) in configs), "")
            raise UnsupportedModelError(f"model={model!r} is a {config.model_type!r}, {_obstacle(found, classifies)}.")
        processor = transformers.AutoProcessor.from_pretrained(model)
        loaded = kind.from_pretrained(model, dtype=dtype)
    return loaded.to(device).eval(), processor


def _obstacle(found: Classified, wanted: Classified) -> str:
    """Why a model that classifies such things, or is none of those known, is not loaded, and what to do."""
    if found and wanted:
        return f"which classifies {found}, not {wanted}: give --{found[:-1]}"
    if found:
        return (
            "which has no language model: give a vision-language model, or `tokenprune view` it with a policy of "
            "stage 'vision' (tome)"
        )
    return "which takes no images: give a vision-language model" + (f" or a classifier of {wanted}" if wanted else "")


@contextmanager
def sentences_about(model: str):
    """Errors of loading it become sentences."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"model={model!r} needs a package that is not installed ({_line(error)}): install it, for video models by "
            "pip install tokenprune-vlm[video]."
        ) from None
    except (OSError, ValueError) as error:
        if Path(model).exists():
            raise InputError(f"model={model!r} holds no loadable checkpoint ({_line(error)}).") from None
        raise InputError(
            f"model={model!r} is neither a folder here nor a model that can be fetched from the hub: check the name."
        ) from None


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


def with_placeholders(processor: Any, prompt: str, *, images: int = 0, videos: int = 0) -> str:
    """The prompt as the model reads it, a placeholder for each: by the chat template if there is one, else in front.

    Raises:
        InputError: the prompt has placeholders of its own, and not as many as there are images or videos.
        UnsupportedModelError: the processor names no placeholder and has no chat template.
    """
    counts = {"image": images, "video": videos}
    tokens = {kind: getattr(processor, f"{kind}_token", None) for kind in counts}
    found = {kind: prompt.count(token) if token else 0 for kind, token in tokens.items()}
    if any(found.values()):
        for kind, count in counts.items():
            if found[kind] != count:
                raise InputError(
                    f"prompt has {found[kind]} times {tokens[kind]!r} for {count} {kind}s: give one per {kind}, or "
                    "none."
                )
        return prompt
    if getattr(processor, "chat_template", None):
        content = [{"type": kind} for kind, count in counts.items() for _ in range(count)]
        return processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
    for kind, count in counts.items():
        if count and not tokens[kind]:
            raise UnsupportedModelError(
                f"the processor {type(processor).__name__} has neither a chat template nor a token for {kind}s: use "
                "the model's own prompt format from Python."
            )
    return "".join(tokens[kind] * count for kind, count in counts.items() if count) + "\n" + prompt


def encode(
    processor: Any, model: Any, prompt: str, pictures: Sequence[Image] = (), videos: Sequence[Video] = ()
) -> tuple[Any, bool]:
    """A forward's arguments for a prompt about pictures and videos, and whether text was put around it.

    Raises:
        InputError: the prompt has placeholders of its own, and not as many as there are pictures or videos; or the
            processor refuses them.
        UnsupportedModelError: the processor takes no videos, or names no placeholder and has no chat template.
    """
    name = type(processor).__name__
    given: dict[str, Any] = {"images": list(pictures)} if pictures else {}
    if videos:
        reader = getattr(processor, "video_processor", None)
        if reader is None:
            raise UnsupportedModelError(f"the processor {name} takes no videos: give a model that does, or images.")
        joined = getattr(reader, "temporal_patch_size", None) or 1
        for video in videos:
            if len(video) < joined:
                raise InputError(
                    f"video={video.path!r} gives {len(video)} frame, and {name} joins {joined} into one: read more."
                )
        given |= {
            "videos": [video.frames for video in videos],
            "video_metadata": [video.metadata() for video in videos],
            "do_sample_frames": False,
        }
    text = with_placeholders(processor, prompt, images=len(pictures), videos=len(videos))
    tokenizer = getattr(processor, "tokenizer", None)
    begun = text.startswith(getattr(tokenizer, "bos_token", None) or "\0")  # by the chat template
    try:
        inputs = processor(text=[text], return_tensors="pt", add_special_tokens=not begun, **given)
    except ValueError as error:
        raise InputError(
            f"{name} cannot encode these together ({_line(error)}): give other images or videos."
        ) from None
    seconds = inputs.get("second_per_grid_ts")
    inputs = inputs.to(model.device, dtype=model.dtype)
    if seconds is not None:  # positions are made of them
        inputs["second_per_grid_ts"] = seconds
    return inputs, text != prompt


def encode_plain(processor: Any, model: Any, pictures: Sequence[Image], videos: Sequence[Video]) -> Any:
    """A forward's arguments of a classifier, for one picture or one video.

    Raises:
        InputError: it takes clips of another length, or the processor refuses this one.
    """
    frames = getattr(model.config, "num_frames", None)
    for video in videos:
        if frames is not None and len(video) != frames:
            raise InputError(
                f"video={video.path!r} gives {len(video)} frames, and {type(model).__name__} takes clips of {frames}: "
                f"give --frames {frames}, and a video that has so many."
            )
    given = [list(video.frames) for video in videos] or list(pictures)
    options = {"do_sample_frames": False} if hasattr(processor, "sample_frames") else {}
    try:
        inputs = processor(given, return_tensors="pt", **options)
    except ValueError as error:
        raise InputError(f"{type(processor).__name__} cannot encode this ({_line(error)}): give another.") from None
    return inputs.to(model.device, dtype=model.dtype)


def frames_are_images(inputs: Any, pictures: Sequence[Image], videos: Sequence[Video]) -> bool:
    """Whether the processor wrote the frames of a video as images.

    Raises:
        InputError: it did, and they cannot be told from other images of the prompt.
    """
    if not videos or any("video" in name for name in inputs):
        return False
    if pictures or len(videos) > 1:
        raise InputError(
            f"{len(videos)} videos and {len(pictures)} images are one row of images to this model, which writes frames "
            "as images: give one video, or images."
        )
    return True


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


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")

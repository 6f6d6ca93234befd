"""Prompts, pictures and videos as arguments of a model's forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import InputError, UnsupportedModelError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from .video import Video


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
            f"{name} cannot encode these together ({first_line(error)}): give other images or videos."
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
        raise InputError(
            f"{type(processor).__name__} cannot encode this ({first_line(error)}): give another."
        ) from None
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

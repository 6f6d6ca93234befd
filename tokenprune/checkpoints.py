"""Models by name: a folder or an id of the hub, and what goes wrong with them as sentences."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from .errors import InputError, InvalidArgumentError, UnsupportedModelError, first_line, nearest

Classified = Literal["", "images", "videos"]


def load(model: str, *, classifies: Classified = "", dtype: str = "auto", device: str = "") -> tuple[Any, Any]:
    """A vision-language model in eval mode and its processor, from a folder or the hub.

    Args:
        classifies: also takes a classifier of these.

    Raises:
        InputError: nothing there, or nothing that can be loaded.
        UnsupportedModelError: none of these.
    """
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
    device = usable(device)
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


def usable(device: str) -> str:
    """The device; "" is the GPU if there is one.

    Raises:
        InvalidArgumentError: torch cannot use it.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(f"device={device!r} cannot be used ({first_line(error)}): try cpu.") from None
    return device


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
            f"model={model!r} needs a package that is not installed ({first_line(error)}): install it, for video "
            "models by pip install tokenprune-vlm[video]."
        ) from None
    except (OSError, ValueError) as error:
        if Path(model).exists():
            raise InputError(f"model={model!r} holds no loadable checkpoint ({first_line(error)}).") from None
        raise InputError(
            f"model={model!r} is neither a folder here nor a model that can be fetched from the hub: check the name."
        ) from None

"""easy-VQA (Victor Zhou): 5,000 third-party images of one shape with 48,248 questions, from the package `easy-vqa`."""

from types import ModuleType

import numpy as np
from PIL import Image

from .questions import Question
from .scenes import SIZE

KIND = "easy-vqa"


def _package() -> ModuleType:
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError("the easy-VQA set needs the package easy-vqa; pip install 'tokenprune-vlm[eval]'") from error
    return easy_vqa


def samples(split: str) -> list[tuple[str, Question]]:
    """Every question of `split` ("train" or "test") with the path of its 64 x 64 px image."""
    package = _package()
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} is unknown; use 'train' or 'test'")
    texts, answers, numbers = getattr(package, f"get_{split}_questions")()
    paths = getattr(package, f"get_{split}_image_paths")()
    return [(paths[n], Question(t, a, KIND)) for t, a, n in zip(texts, answers, numbers, strict=True)]


def grouped(split: str) -> list[tuple[np.ndarray, list[Question]]]:
    """Images [SIZE, SIZE, 3] uint8, resized as the processor does, each with all its questions."""
    questions: dict[str, list[Question]] = {}
    for path, question in samples(split):
        questions.setdefault(path, []).append(question)
    return [(read(path), asked) for path, asked in sorted(questions.items())]


def read(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))

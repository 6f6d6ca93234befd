"""How lmms-eval has to load the models trained in this repository, so that they read what they were trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build import named

BASE = "llava_hf"
# llava_hf puts "<image>\n" or "<video>\n" in front of the question, and a Vicuna dialogue around it unless given a
# template. This one adds nothing: the tokenizer takes the line break for a space and puts <bos> in front.
# force_simple: of lmms-eval's two classes by that name, the one for prompts as text; the other's are lists of parts.
PLAIN = "{{ messages[0]['content'] }}"
FRAMES = 8  # of a clip: all of them


def _arguments(checkpoint: str, **more: Any) -> dict[str, Any]:
    folder = Path(__file__).parents[1] / "shapes" / checkpoint
    loaded = {"pretrained": str(folder), "device": "cpu", "device_map": "cpu", "dtype": "float32"}
    return loaded | {"chat_template": PLAIN, "force_simple": True} | more


# model -> arguments of BASE
EMBEDDED: dict[str, dict[str, Any]] = {
    "shapes": _arguments("checkpoint"),
    "shapes_video": _arguments("checkpoint_video", max_frames_num=FRAMES),
}
MODELS = {"shapes": "shapes", "shapes_video": "shapes_video", "easy_vqa": "shapes"}  # task -> model that answers it


def chosen(names: Sequence[str]) -> dict[str, list[str]]:
    """Model -> those of the tasks that it answers.

    Raises:
        InvalidArgumentError: an unknown task.
    """
    found: dict[str, list[str]] = {}
    for name in named(names):
        found.setdefault(MODELS[name], []).append(name)
    return found

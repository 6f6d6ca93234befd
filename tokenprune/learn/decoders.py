"""Language models by name, for the command line."""

from __future__ import annotations

from typing import Any

import torch

from ..command import sentences_about
from ..errors import InvalidArgumentError
from ..stages.skip_parts import find_skip_parts


def load_decoder(model: str, device: str = "") -> tuple[Any, Any]:
    """A causal language model in eval mode and float32, and its tokenizer.

    Raises:
        InputError: nothing there, or nothing that can be loaded.
        UnsupportedModelError: tokens cannot skip its blocks.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(
            f"device={device!r} cannot be used ({str(error).splitlines()[0]}): try cpu."
        ) from None
    disable_progress_bar()
    with sentences_about(model):
        loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    find_skip_parts(loaded)
    return loaded.float().to(device).eval(), tokenizer

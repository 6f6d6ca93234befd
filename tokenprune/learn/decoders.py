"""Language models by name, for the command line."""

from __future__ import annotations

from typing import Any

from ..checkpoints import sentences_about, usable
from ..stages.skip_parts import find_skip_parts


def load_decoder(model: str, device: str = "") -> tuple[Any, Any]:
    """A causal language model in eval mode and float32, and its tokenizer.

    Raises:
        InputError: nothing there, or nothing that can be loaded.
        UnsupportedModelError: tokens cannot skip its blocks.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    device = usable(device)
    disable_progress_bar()
    with sentences_about(model):
        loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    find_skip_parts(loaded)
    return loaded.float().to(device).eval(), tokenizer

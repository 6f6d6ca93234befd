"""Which model a trained module belongs to."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from .errors import PredictorError

NUMBERS = 4096  # input embeddings that tell one checkpoint from another


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """A few facts of a model, of transformers, that a module trained beside it depends on, for JSON.

    `embeddings` is of the first numbers of the input embeddings in bfloat16, so the dtype a checkpoint is loaded in
    makes no difference; quantising and adapters leave them alone.
    """
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    weight = model.get_input_embeddings().weight.detach()
    numbers = weight.flatten()[:NUMBERS].to("cpu", torch.bfloat16).view(torch.uint8)
    return {
        "model_type": config.model_type,
        "name": getattr(config, "_name_or_path", "") and config._name_or_path.rstrip("/").rpartition("/")[2],
        "width": text.hidden_size,
        "layers": text.num_hidden_layers,
        "embeddings": hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16],
    }


def check_fingerprint(trained: dict[str, Any], model: nn.Module, policy: str) -> None:
    """That a module was trained for this model; one without a fingerprint fits any.

    Raises:
        PredictorError: it was trained for another one; names both.
    """
    if not trained:
        return
    here = fingerprint(model)
    apart = [key for key in here if key != "name" and key in trained and trained[key] != here[key]]
    if apart:
        raise PredictorError(
            f"policy={policy!r} was trained for {_told(trained)}, and model is {_told(here)}, another one "
            f"({', '.join(apart)} differ). "
            f"Load the model it was trained for, or train one for this model (tokenprune train {policy})."
        )


def _told(facts: dict[str, Any]) -> str:
    name = f" {facts['name']!r}" if facts.get("name") else ""
    return (
        f"{facts.get('model_type')}{name} ({facts.get('layers')} layers of width {facts.get('width')}, embeddings "
        f"{facts.get('embeddings')})"
    )

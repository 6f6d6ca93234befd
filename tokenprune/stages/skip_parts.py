"""Which models have blocks that tokens can skip."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from .layer_inputs import kind_of
from .layer_plan import attention_of
from .parts import Parts, unwrapped


def find_skip_parts(model: Any) -> Parts:
    """The parts of a decoder-only language model, or of a vision-language model, in which tokens skip blocks.

    Raises:
        UnsupportedModelError: tokens cannot skip its blocks exactly; says why.
    """
    given, model = model, unwrapped(model)
    kind, remedy = type(model).__name__, "give a decoder of the kind of Llama, Qwen or SmolLM2, loaded by transformers."
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            f"model={kind} is compiled already, and a compiled graph ignores hooks added later: wrap the model first, "
            "then call torch.compile."
        )
    if not all(hasattr(model, name) for name in ("config", "base_model", "get_decoder")):
        raise UnsupportedModelError(f"model={kind} is no language model of transformers: {remedy}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"model={kind} is an encoder-decoder, whose tokens cannot skip blocks: {remedy}")
    decoder = model.get_decoder()
    decoder = getattr(decoder, "base_model", decoder)  # of a causal language model, what is below its head
    problem = _problem(decoder)
    if problem is not None:
        raise UnsupportedModelError(f"model={kind} {problem}: {remedy}")
    entries = (model,) if given is model else (given, model)
    return Parts(model=model, entries=entries, outer=model.base_model, decoder=decoder, adapter=None)


def _problem(decoder: nn.Module) -> str | None:
    """Why tokens cannot skip the blocks of a decoder, None where they can."""
    config, layers = decoder.config, getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != getattr(config, "num_hidden_layers", len(layers)):
        return "has no list of as many blocks as its config says"
    takes = [inspect.signature(type(one).forward).parameters for one in layers]
    if not hasattr(decoder, "rotary_emb") or any("position_embeddings" not in one for one in takes):
        return "has no rotary embedding, by which tokens keep their positions whatever a cache holds"
    if any("past_key_values" not in one for one in takes):
        return "has blocks that are not given their cache as past_key_values"
    if getattr(config, "num_kv_shared_layers", 0):
        return "has blocks that read the keys of others, where other tokens skipped"
    kinds = {kind_of(config, i) for i in range(len(layers))}
    if kinds != {"full_attention"} or any(not hasattr(attention_of(one), "config") for one in layers):
        return f"has blocks of {', '.join(sorted(kinds))}, and tokens can skip blocks of full attention alone"
    return None

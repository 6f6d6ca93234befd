"""Where the parts of a loaded model are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..report import DecoderShape


@dataclass(frozen=True)
class Parts:
    """The modules that hooks go to.

    Attributes:
        model: the transformers model.
        entries: the modules whose call may start a forward: what the user gave, and the model inside of it.
        outer: the multimodal module that gets `input_ids` and calls the decoder.
        decoder: the text decoder that gets `inputs_embeds`.
        adapter: facts of the family.
    """

    model: nn.Module
    entries: tuple[nn.Module, ...]
    outer: nn.Module
    decoder: nn.Module
    adapter: Any

    @property
    def config(self) -> Any:
        return self.outer.config

    def module(self, path: str) -> nn.Module:
        return self.outer.get_submodule(path)

    def placeholder(self, modality: str) -> int | None:
        """Token id that stands for one visual token of "image" or "video"."""
        names = (f"{modality}_token_id", f"{modality}_token_index", f"{modality}_patch_id")
        return next((token for name in names if (token := getattr(self.config, name, None)) is not None), None)

    @property
    def attention(self) -> str:
        """Name of the decoder's attention implementation."""
        return str(self.decoder.config._attn_implementation)

    @property
    def several_axes(self) -> bool:
        """Position ids count time, rows and columns apart."""
        parameters = getattr(self.decoder.config, "rope_parameters", None) or {}
        by_kind = [one for one in parameters.values() if isinstance(one, dict)]
        return any("mrope_section" in one for one in (parameters, *by_kind))

    def decoder_shape(self) -> DecoderShape | None:
        """Sizes for cost estimates, None where the decoder's config does not name them."""
        config = self.decoder.config
        try:
            heads, hidden = config.num_attention_heads, config.hidden_size
            width = getattr(config, "head_dim", None) or hidden // heads
            return DecoderShape(
                layers=config.num_hidden_layers,
                hidden=hidden,
                intermediate=config.intermediate_size,
                query=heads * width,
                key_value=config.num_key_value_heads * width,
                dtype_bytes=self.model.dtype.itemsize,
            )
        except (AttributeError, RuntimeError):  # RuntimeError: sizes differ by layer
            return None


def find_parts(model: Any, lookup, supported: list[str]) -> Parts:
    """Find the parts of `model`.

    Args:
        model: a loaded transformers model.
        lookup: maps a model type to its adapter or None.
        supported: model types to name in errors.

    Raises:
        UnsupportedModelError: no transformers model, text-only, on the meta device, compiled, inside of a parallel
            one, or of a family without an adapter.
    """
    given, model = model, unwrapped(model)
    kind, families = type(model).__name__, ", ".join(supported)
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            f"model={kind} is compiled already, and a compiled graph ignores hooks added later: wrap the model first, "
            "then call torch.compile."
        )
    if isinstance(getattr(model, "module", None), nn.Module):
        raise UnsupportedModelError(
            f"model={kind} only calls the model inside of it: give that one, wrap(model.module, ...); {kind} may go on "
            "being called."
        )
    if not all(hasattr(model, name) for name in ("config", "base_model", "get_decoder")):
        raise UnsupportedModelError(
            f"model={kind} is not a transformers model: give a loaded one of the families {families}."
        )
    outer, adapter = model.base_model, lookup(model.config.model_type)
    if adapter is None or not hasattr(outer, "get_image_features"):
        raise UnsupportedModelError(
            f"model={kind} of the family {model.config.model_type!r} {_obstacle(model, lookup)} {families}."
        )
    if (problem := adapter.problem(model.config)) is not None:
        raise UnsupportedModelError(f"model={kind} cannot be wrapped: {problem}.")
    offloaded = hasattr(model, "hf_device_map") or any(hasattr(module, "_hf_hook") for module in model.modules())
    if not offloaded and any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"model={kind} is on the meta device and has no weights: load them first (from_pretrained, or to_empty "
            "and load_state_dict)."
        )
    entries = (model,) if given is model else (given, model)
    decoder = model.get_decoder()
    decoder = getattr(decoder, "base_model", decoder)  # of a causal language model, what is below its head
    if not hasattr(decoder, "layers"):  # llama4's is not where its prefix says
        decoder = getattr(decoder, "model", decoder)
    return Parts(model=model, entries=entries, outer=outer, decoder=decoder, adapter=adapter)


def _obstacle(model: Any, lookup) -> str:
    """Why a transformers model without an adapter cannot be pruned; what can be follows."""
    config, instead = model.config, "give a vision-language model of the families"
    part = next((name for name, child in model.named_children() if _has_adapter(child, lookup)), None)
    if part is not None:
        return f"is made of several models, and one of them has visual tokens: wrap(model.{part}, ...). Supported are"
    if config.is_encoder_decoder:
        return f"is an encoder-decoder, and only decoders that read images in their own prompt are pruned: {instead}"
    if not hasattr(config, "vision_config") and not hasattr(model.base_model, "get_image_features"):
        return f"has no vision tower, so it has no visual tokens: {instead}"
    names = " ".join(name for name, _ in model.named_modules())
    if "qformer" in names or hasattr(config, "latent_query_num"):
        return f"reads images through a few learned queries, which leave no visual tokens to choose from: {instead}"
    if "cross_attn" in names or "crossattention" in names:
        return f"reads images by cross-attention, so its prompt holds no visual tokens: {instead}"
    if "vqmodel" in names or "vqvae" in names:
        return f"reads images as words of its vocabulary, which its decoder cannot tell from text: {instead}"
    return "is not supported yet: supported are"


def _has_adapter(module: nn.Module, lookup) -> bool:
    config = getattr(module, "config", None)
    return hasattr(module, "get_decoder") and lookup(getattr(config, "model_type", None)) is not None


def unwrapped(model: Any) -> Any:
    """The transformers model inside of a PEFT model, or of what PEFT keeps it in."""
    inner = getattr(model, "get_base_model", None)
    if callable(inner):
        return inner()
    return model.model if hasattr(model, "peft_config") and not isinstance(model, PreTrainedModel) else model

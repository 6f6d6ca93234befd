"""Models that cannot be pruned: each is refused at wrap, for the reason that holds for it, and left untouched."""

import pytest
import torch
import transformers

import tokenprune
from tests.families import BY_NAME, QWEN2_5_VL
from tokenprune import errors

CROSS = "by cross-attention, so its prompt holds no visual tokens"
ENCODER = "is an encoder-decoder, and only decoders that read images in their own prompt"
QUERIES = "through a few learned queries, which leave no visual tokens to choose from"
WORDS = "as words of its vocabulary"
REASONS = {
    "Mllama": CROSS,
    "IdeficsForVisionText2Text": CROSS,
    "Blip": CROSS,
    "Florence2": ENCODER,
    "T5Gemma2": ENCODER,
    "Udop": ENCODER,
    "Pix2Struct": ENCODER,
    "Blip2": QUERIES,
    "InstructBlip": QUERIES,
    "InstructBlipVideo": QUERIES,
    "Kosmos2": QUERIES,
    "Kosmos2_5": QUERIES,
    "Chameleon": WORDS,
    "Emu3": WORDS,
    "FuyuForCausalLM": "'fuyu' is not supported yet",
    "GitForCausalLM": "'git' is not supported yet",
    "Phi4MultimodalForCausalLM": "'phi4_multimodal' is not supported yet",
    "VoxtralForConditionalGeneration": "has no vision tower",
    "Mistral4ForCausalLM": "has no vision tower",
}
DEPTHS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "depth", "vision_layers")


def shallow(config):
    """The family's default config with two layers of everything."""
    for name in DEPTHS:
        if isinstance(getattr(config, name, None), int) and name not in type(config).attribute_map:
            setattr(config, name, min(2, getattr(config, name)))
    if hasattr(config, "cross_attention_layers"):
        config.cross_attention_layers = [1]
    for name in config.sub_configs:
        if isinstance(getattr(config, name, None), transformers.PreTrainedConfig):
            shallow(getattr(config, name))
    return config


def on_meta(name):
    """A model of full width without weights: what refuses it reads only its structure."""
    name = name if hasattr(transformers, name) else f"{name}ForConditionalGeneration"
    kind = getattr(transformers, name)
    given = {"vocabulary_map": {"<image>": 5}} if name.startswith(("Chameleon", "Emu3")) else {}
    with torch.device("meta"):
        return kind(shallow(kind.config_class(**given)))


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_the_right_one(name):
    model = on_meta(name)
    hooks = {key: len(module._forward_pre_hooks) for key, module in model.named_modules()}
    with pytest.raises(errors.UnsupportedModelError) as caught:
        tokenprune.wrap(model, "uniform", keep=4)
    message = str(caught.value)
    assert REASONS[name] in message
    assert f"model={type(model).__name__} " in message  # which model it was
    assert "llava" in message  # what could be used
    assert message.count("\n") == 0
    assert hooks == {key: len(module._forward_pre_hooks) for key, module in model.named_modules()}


def test_a_model_of_several_models_names_the_part_to_wrap():
    """Omni models speak with a talker; the thinker reads the images."""
    thinker = BY_NAME["qwen2_5_omni_thinker"].model()
    config = transformers.Qwen2_5OmniConfig(enable_audio_output=False)
    with torch.device("meta"):
        model = transformers.Qwen2_5OmniForConditionalGeneration(shallow(config))
    model.thinker = thinker
    with pytest.raises(errors.UnsupportedModelError, match=r"several models.*wrap\(model\.thinker, \.\.\.\)"):
        tokenprune.wrap(model, "uniform", keep=4)
    with tokenprune.wrap(model.thinker, "uniform", keep=4) as handle:
        thinker(**BY_NAME["qwen2_5_omni_thinker"].inputs((1,)))
    assert handle.report().kept == 4


def test_the_language_model_of_a_supported_family():
    with pytest.raises(errors.UnsupportedModelError, match="has no vision tower"):
        tokenprune.wrap(QWEN2_5_VL.model().get_decoder(), "uniform", keep=4)

"""Tiny processors of video families, whose ids fit the models of `tests/families`, saved in one folder with them."""

from __future__ import annotations

from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.families import BY_NAME
from tests.families.base import BREAK, GLOBAL, IMAGE, VIDEO, VISION_END, VISION_START, VOCABULARY

SPECIAL = {
    IMAGE: "<image>",
    VIDEO: "<video>",
    VISION_START: "<start>",
    VISION_END: "<end>",
    BREAK: "<break>",
    GLOBAL: "<global-img>",
}
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "what", "moves", "frame", "seconds", *"?<>.:,0123456789"]
SQUARE = {"size": {"height": 16, "width": 16}}
CROPPED = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def tokenizer() -> PreTrainedTokenizerFast:
    """One id per word or digit."""
    ids = {SPECIAL.get(i, WORDS[i] if i < len(WORDS) else f"w{i}"): i for i in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    named = {
        "image_token": "<image>",
        "context_image_token": "<image>",
        "video_token": "<video>",
        "start_image_token": "<start>",
        "end_image_token": "<end>",
        "vision_start_token": "<start>",
        "vision_end_token": "<end>",
        "fake_image_token": "<start>",
        "global_image_token": "<global-img>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=named,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _llava_onevision():
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            **SQUARE, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]]
        ),
        video_processor=transformers.LlavaOnevisionVideoProcessor(**SQUARE),
        tokenizer=tokenizer(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )


def _llava_next_video():
    return transformers.LlavaNextVideoProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            **CROPPED, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]]
        ),
        video_processor=transformers.LlavaNextVideoVideoProcessor(**CROPPED),
        tokenizer=tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _video_llava():
    return transformers.VideoLlavaProcessor(
        image_processor=transformers.VideoLlavaImageProcessor(**CROPPED),
        video_processor=transformers.VideoLlavaVideoProcessor(**CROPPED),
        tokenizer=tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
    )


def _qwen(name: str, size: dict[str, int]):
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    video = getattr(transformers, "Qwen3VLVideoProcessor" if name == "Qwen3VL" else "Qwen2VLVideoProcessor")
    return getattr(transformers, f"{name}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(**patches),
        video_processor=video(**patches),
        tokenizer=tokenizer(),
    )


def _internvl():
    square = {"size": {"height": 32, "width": 32}}
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(**square, crop_to_patches=False),
        video_processor=transformers.InternVLVideoProcessor(**square),
        tokenizer=tokenizer(),
        image_seq_length=16,
    )


def _smolvlm():
    return transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
        ),
        video_processor=transformers.SmolVLMVideoProcessor(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=tokenizer(),
        image_seq_len=16,
    )


PIXELS = {"shortest_edge": 64, "longest_edge": 32 * 32}  # of a frame; Qwen3-VL counts those of all frames
PROCESSORS = {
    "llava_onevision": _llava_onevision,
    "llava_next_video": _llava_next_video,
    "video_llava": _video_llava,
    "qwen2_vl": lambda: _qwen("Qwen2VL", PIXELS),
    "qwen2_5_vl": lambda: _qwen("Qwen2_5_VL", PIXELS),
    "qwen3_vl": lambda: _qwen("Qwen3VL", {"shortest_edge": 64, "longest_edge": 6 * 32 * 32}),
    "internvl": _internvl,
    "smolvlm": _smolvlm,
}


def save(model_type: str, folder: Path) -> Path:
    """A tiny random model of this type and its processor, as `from_pretrained` finds them."""
    BY_NAME[model_type].model().save_pretrained(folder)
    PROCESSORS[model_type]().save_pretrained(folder)
    return folder

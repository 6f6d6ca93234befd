"""The shapes of public vision-language models, as their configs have them, and smaller ones of the same proportions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LEAST_LAYERS = 4  # of a scaled part: fewer leave no room for layers that are named by number
LEAST_WORDS = 2048


@dataclass(frozen=True)
class Decoder:
    """Sizes of a language model; `ids` are its special tokens by the config's names, the placeholder first."""

    kind: str
    hidden: int
    inner: int
    layers: int
    heads: int
    key_value: int
    words: int
    ids: dict[str, int]
    theta: float
    eps: float = 1e-6
    axes: tuple[int, int, int] | None = None  # of a head: time, rows, columns
    more: dict[str, Any] = field(default_factory=dict)

    def config(self, scale: float) -> dict[str, Any]:
        """Heads keep their width."""
        width, heads = self.hidden // self.heads, max(1, round(self.heads * scale))
        most = max(1, round(self.key_value * scale))
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.theta}
        if self.axes is not None:
            rope["mrope_section"] = list(self.axes)
        return {
            "model_type": self.kind,
            "hidden_size": heads * width,
            "head_dim": width,
            "intermediate_size": self.inner if scale == 1 else _rounded(self.inner * heads / self.heads),
            "num_hidden_layers": _layers(self.layers, scale),
            "num_attention_heads": heads,
            "num_key_value_heads": max(n for n in range(1, most + 1) if heads % n == 0),
            "vocab_size": self.words if scale == 1 else max(LEAST_WORDS, _rounded(self.words * scale)),
            "max_position_embeddings": 32768,
            "rms_norm_eps": self.eps,
            "rope_parameters": rope | self.more.get("rope_parameters", {}),
            "bos_token_id": None,
            "eos_token_id": None,
            "tie_word_embeddings": False,
            **{name: value for name, value in self.more.items() if name != "rope_parameters"},
        }

    def special(self, scale: float) -> dict[str, int]:
        """Ids of the special tokens: the last ones of a smaller vocabulary."""
        last = self.config(scale)["vocab_size"] - 1
        return self.ids if scale == 1 else {name: last - i for i, name in enumerate(self.ids)}


@dataclass(frozen=True)
class Tower:
    """Sizes of a vision transformer."""

    hidden: int
    inner: int
    layers: int
    heads: int
    patch: int
    image: int = 0

    def config(self, scale: float, *, depth: str = "num_hidden_layers", heads: str = "num_attention_heads") -> dict:
        """Heads keep their width. `depth`, `heads`: what the config calls them."""
        count = max(1, round(self.heads * scale))
        return {
            "hidden_size": count * (self.hidden // self.heads),
            "intermediate_size": self.inner if scale == 1 else _rounded(self.inner * count / self.heads),
            depth: _layers(self.layers, scale),
            heads: count,
            "patch_size": self.patch,
            **({"image_size": self.image} if self.image else {}),
        }


@dataclass(frozen=True)
class Shape:
    """A model, and one picture for it.

    Attributes:
        checkpoint: whose published config this is.
        picture: what is encoded, in words.
        tokens: visual tokens of it, newlines included.
        config: (shape, scale) -> config of transformers.
        pixels: its pixel arguments, drawn at random.
        separate: names of the ids around the placeholders, in front and behind.
    """

    checkpoint: str
    picture: str
    tokens: int
    decoder: Decoder
    tower: Tower
    config: Callable[[Shape, float], Any]
    pixels: Callable[[Shape], dict[str, Tensor]]
    separate: tuple[str, ...] = ()
    typed: bool = False  # takes mm_token_type_ids

    def inputs(self, scale: float, text: int, seed: int) -> dict[str, Tensor]:
        """Arguments of a forward for one sample: a quarter of the `text` tokens, the picture, and the rest of them."""
        special = self.decoder.special(scale)
        torch.manual_seed(seed)
        words = torch.randint(3, 1000, (text,)).tolist()
        image = special[next(iter(special))]
        block = [image] * self.tokens
        if self.separate:
            before, behind = (special[name] for name in self.separate)
            block = [before, *block, behind]
        ids = torch.tensor([words[: text // 4] + block + words[text // 4 :]])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.pixels(self)}
        return given | ({"mm_token_type_ids": (ids == image).int()} if self.typed else {})


def _rounded(value: float, step: int = 32) -> int:
    return max(step, round(value / step) * step)


def _layers(count: int, scale: float) -> int:
    return min(count, max(LEAST_LAYERS, round(count * scale)))


def _at(indices: tuple[int, ...], whole: int, now: int) -> list[int]:
    """Blocks as deep in a tower of `now` blocks as these in one of `whole`, none of them twice."""
    found: list[int] = []
    for left, index in zip(range(len(indices) - 1, -1, -1), indices, strict=True):
        deep = round((index + 1) / whole * now) - 1
        found.append(min(max(deep, found[-1] + 1 if found else 0), now - 1 - left))
    return found


def _llava(shape: Shape, scale: float) -> Any:
    import transformers

    return transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "projection_dim": 768, **shape.tower.config(scale)},
        text_config=shape.decoder.config(scale),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        **shape.decoder.special(scale),
    )


def _llava_next(shape: Shape, scale: float) -> Any:
    import transformers

    return transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "projection_dim": 768, **shape.tower.config(scale)},
        text_config=shape.decoder.config(scale),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        **shape.decoder.special(scale),
    )


def _onevision(shape: Shape, scale: float) -> Any:
    import transformers

    steps = range(384, 2305, 384)
    return transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **shape.tower.config(scale)},
        text_config=shape.decoder.config(scale),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[height, width] for height in steps for width in steps],
        **shape.decoder.special(scale),
    )


def _internvl(shape: Shape, scale: float) -> Any:
    import transformers

    vision = shape.tower.config(scale)
    sides = {name: [vision[name], vision[name]] for name in ("image_size", "patch_size")}
    return transformers.InternVLConfig(
        vision_config={**vision, **sides, "attention_bias": True},
        text_config=shape.decoder.config(scale),
        image_seq_length=256,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **shape.decoder.special(scale),
    )


def _qwen2_5_vl(shape: Shape, scale: float) -> Any:
    import transformers

    text, vision = shape.decoder.config(scale), shape.tower.config(scale, depth="depth", heads="num_heads")
    more = {
        "out_hidden_size": text["hidden_size"],
        "fullatt_block_indexes": _at((7, 15, 23, 31), shape.tower.layers, vision["depth"]),
        "window_size": 112,
        "tokens_per_second": 2,
    }
    del text["model_type"], text["head_dim"]
    return transformers.Qwen2_5_VLConfig(
        vision_config=vision | more, text_config=text, tie_word_embeddings=False, **shape.decoder.special(scale)
    )


def _qwen3_vl(shape: Shape, scale: float) -> Any:
    import transformers

    text, vision = shape.decoder.config(scale), shape.tower.config(scale, depth="depth", heads="num_heads")
    more = {
        "out_hidden_size": text["hidden_size"],
        "deepstack_visual_indexes": _at((8, 16, 24), shape.tower.layers, vision["depth"]),
        "num_position_embeddings": 2304,
    }
    del text["model_type"]
    return transformers.Qwen3VLConfig(
        vision_config=vision | more, text_config=text, tie_word_embeddings=False, **shape.decoder.special(scale)
    )


def _one(shape: Shape) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, 3, shape.tower.image, shape.tower.image)}


def _tiled(shape: Shape) -> dict[str, Tensor]:
    """Two by two tiles behind the whole picture."""
    side = shape.tower.image
    return {"pixel_values": torch.randn(1, 5, 3, side, side), "image_sizes": torch.tensor([[2 * side, 2 * side]])}


def _onevision_tiled(shape: Shape) -> dict[str, Tensor]:
    return {**_tiled(shape), "batch_num_images": torch.tensor([1])}


def _five(shape: Shape) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(5, 3, shape.tower.image, shape.tower.image)}


def _packed(shape: Shape) -> dict[str, Tensor]:
    """Patches of a square, four to a token, each twice: a picture is a video of two equal frames."""
    side = 2 * math.isqrt(shape.tokens)
    values = torch.randn(side * side, 3 * 2 * shape.tower.patch**2)
    return {"pixel_values": values, "image_grid_thw": torch.tensor([[1, side, side]])}


CLIP = Tower(hidden=1024, inner=4096, layers=24, heads=16, patch=14, image=336)
VICUNA = Decoder(
    kind="llama", hidden=4096, inner=11008, layers=32, heads=32, key_value=32, words=32064,
    ids={"image_token_index": 32000}, theta=1e4, eps=1e-5,
)  # fmt: skip
QWEN2 = {
    "kind": "qwen2", "hidden": 3584, "inner": 18944, "layers": 28, "heads": 28, "key_value": 4, "theta": 1e6,
}  # fmt: skip
QWEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
BORDERS = ("vision_start_token_id", "vision_end_token_id")

SHAPES = {
    "llava-1.5-7b": Shape(
        checkpoint="llava-hf/llava-1.5-7b-hf", picture="336 x 336 pixels", tokens=576,
        decoder=VICUNA, tower=CLIP, config=_llava, pixels=_one,
    ),
    "llava-next-7b": Shape(
        checkpoint="llava-hf/llava-v1.6-vicuna-7b-hf", picture="672 x 672 pixels in 5 tiles", tokens=2880 + 48,
        decoder=VICUNA, tower=CLIP, config=_llava_next, pixels=_tiled,
    ),
    "onevision-7b": Shape(
        checkpoint="llava-hf/llava-onevision-qwen2-7b-ov-hf", picture="768 x 768 pixels in 5 tiles",
        tokens=5 * 729 + 54,
        decoder=Decoder(**QWEN2, words=152064, ids={"image_token_index": 151646, "video_token_index": 151647}),
        tower=Tower(hidden=1152, inner=4304, layers=26, heads=16, patch=14, image=384),
        config=_onevision, pixels=_onevision_tiled,
    ),
    "internvl3-8b": Shape(
        checkpoint="OpenGVLab/InternVL3-8B-hf", picture="896 x 896 pixels in 5 tiles", tokens=5 * 256,
        decoder=Decoder(**QWEN2, words=151674, ids={"image_token_id": 151667}),
        tower=Tower(hidden=1024, inner=4096, layers=24, heads=16, patch=14, image=448),
        config=_internvl, pixels=_five,
    ),
    "qwen2.5-vl-7b": Shape(
        checkpoint="Qwen/Qwen2.5-VL-7B-Instruct", picture="1008 x 1008 pixels", tokens=1296,
        decoder=Decoder(**{**QWEN2, "kind": "qwen2_5_vl_text"}, words=152064, ids=QWEN_IDS, axes=(16, 24, 24)),
        tower=Tower(hidden=1280, inner=3420, layers=32, heads=16, patch=14),
        config=_qwen2_5_vl, pixels=_packed, separate=BORDERS, typed=True,
    ),
    "qwen3-vl-8b": Shape(
        checkpoint="Qwen/Qwen3-VL-8B-Instruct", picture="1152 x 1152 pixels", tokens=1296,
        decoder=Decoder(
            kind="qwen3_vl_text", hidden=4096, inner=12288, layers=36, heads=32, key_value=8, words=151936,
            ids=QWEN_IDS, theta=5e6, axes=(24, 20, 20), more={"rope_parameters": {"mrope_interleaved": True}},
        ),
        tower=Tower(hidden=1152, inner=4304, layers=27, heads=16, patch=16),
        config=_qwen3_vl, pixels=_packed, separate=BORDERS, typed=True,
    ),
}  # fmt: skip

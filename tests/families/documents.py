"""Readers of documents and pages, most of them with tiles: Granite Docling, DeepSeek-OCR 2, Ovis, ..."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers

from .base import (
    BREAK,
    CLIP,
    GLOBAL,
    IDS,
    IMAGE,
    SAM,
    TEXT,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCABULARY,
    Family,
    Pixels,
    bordered,
    noise,
    text,
)

TILE, SECOND_TILE = 156, 157  # name tiles; the first also stands between two
VIT = {name: value for name, value in CLIP.items() if name not in ("model_type", "projection_dim")}
EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "mlp_layer_types": ["dense", "sparse"] * 2,
}
SAM_WITH_DOWNSAMPLING = {**SAM, "downsample_channels": [16, 32]}


def _granite_docling(*, size: int) -> Any:
    vision = {
        **VIT,
        "image_size": size,
        "out_hidden_size": 64,
        "scale_factor": 2,
        "deepstack_visual_indexes": [0, 1],
    }
    scales = {"logits_scaling": 1.0, "embedding_multiplier": 2.0, "residual_multiplier": 1.0}
    config = transformers.GraniteDoclingConfig(
        vision_config=vision,
        text_config=text("granite_docling_text", attention_multiplier=0.25, **scales),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return transformers.GraniteDoclingForConditionalGeneration(config)


def _tiles(counts: tuple[int, ...], *, size: int) -> Pixels:
    """Every other image in two tiles and a view of the whole; a sample's tiles lie in one padded row."""
    n = sum(counts)
    each = [3 - 2 * (i % 2) for i in range(n)]
    samples = [each[sum(counts[:b]) : sum(counts[: b + 1])] for b in range(len(counts))]
    width = max(map(sum, samples))
    real = torch.tensor([[i < sum(sample) for i in range(width)] for sample in samples])
    pixels = noise(len(counts), width, 3, size, size) * real[:, :, None, None, None]
    tile = [IMAGE] * 16
    second = [VISION_START, SECOND_TILE, *tile]
    whole = [BREAK, VISION_START, GLOBAL, *tile, VISION_START]
    one = [VISION_START, TILE, *tile]
    blocks = [[*one, *second, BREAK, *whole] if k == 3 else [*one, BREAK] for k in each]
    return {"pixel_values": pixels, "pixel_attention_mask": real}, blocks


def _fine(counts: tuple[int, ...]) -> Pixels:
    pixels, blocks = _tiles(counts, size=16)
    return {**pixels, "tile_fine_mask": torch.ones(len(counts), dtype=torch.bool)}, blocks


def _lighton_ocr() -> Any:
    vision = {**VIT, "model_type": "pixtral", "num_channels": 3, "head_dim": 8}
    config = transformers.LightOnOcrConfig(
        vision_config=vision,
        text_config=text("qwen3", head_dim=16),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return transformers.LightOnOcrForConditionalGeneration(config)


def _padded(counts: tuple[int, ...]) -> Pixels:
    """Two sizes, padded to one; the rows of an image are not separated."""
    n = sum(counts)
    sizes = [(32, 40 - 16 * (i % 2)) for i in range(n)]
    pixels = noise(n, 3, 32, 40)
    for image, (_, width) in zip(pixels, sizes, strict=True):
        image[:, :, width:] = 0
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}, [[IMAGE] * (h * w // 64) for h, w in sizes]


def _qianfan_ocr() -> Any:
    vision = {**VIT, "image_size": 32}
    config = transformers.QianfanOCRConfig(
        vision_config=vision, text_config=text("qwen3", head_dim=16), image_token_id=IMAGE, image_seq_length=16
    )
    return transformers.QianfanOCRForConditionalGeneration(config)


def _joined(counts: tuple[int, ...]) -> Pixels:
    """Every other image in two tiles and a thumbnail, all in one run of placeholders."""
    each = [3 - 2 * (i % 2) for i in range(sum(counts))]
    return {"pixel_values": noise(sum(each), 3, 32, 32)}, bordered([16 * k for k in each])


def _deepseek_ocr2() -> Any:
    encoder = {**TEXT, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.DeepseekOcr2Config(
        vision_config={"sam_config": SAM_WITH_DOWNSAMPLING, "encoder_config": encoder},
        text_config=text("deepseek_ocr2_text", **EXPERTS),
        image_token_id=IMAGE,
    )
    model = transformers.DeepseekOcr2ForConditionalGeneration(config)
    # The model has 144 queries for every view below 1024 pixels, in a table that no config shortens.
    model.model.vision_tower.query_768_resolution = torch.nn.Embedding(16, 32)
    return model


def _local(images: int) -> list[int]:
    return [2 - 2 * (i % 2) for i in range(images)]


def _views(counts: tuple[int, ...]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Every other image as two local tiles and a global view, the others as a global view."""
    tiles = _local(sum(counts))
    pixels = {"pixel_values": noise(len(tiles), 3, 64, 64), "pixel_values_local": noise(sum(tiles), 3, 48, 48)}
    return pixels, tiles


def _deepseek_ocr2_images(counts: tuple[int, ...]) -> Pixels:
    """Local tiles, the global view and a separator."""
    pixels, tiles = _views(counts)
    pixels["num_local_patches"] = torch.tensor(tiles)
    return pixels, [[IMAGE] * (16 * n + 16 + 1) for n in tiles]


def _unlimited_ocr() -> Any:
    encoder = {**VIT, "image_size": 16}
    config = transformers.UnlimitedOcrConfig(
        vision_config={"sam_config": SAM_WITH_DOWNSAMPLING, "encoder_config": encoder},
        text_config=text("unlimited_ocr_text", **EXPERTS, sliding_window=16),
        image_token_id=IMAGE,
    )
    return transformers.UnlimitedOcrForConditionalGeneration(config)


def _unlimited_ocr_images(counts: tuple[int, ...]) -> Pixels:
    """Three rows over both local tiles, four of the global view, each with a newline behind it, and a separator."""
    pixels, tiles = _views(counts)
    return pixels, [[IMAGE] * ((3 * (2 * 3 + 1) if n else 0) + 4 * (4 + 1) + 1) for n in tiles]


def _layout(ids: torch.Tensor) -> dict[str, Any]:
    """Tiles of every image as lists: the model splits by them, and tensors do not do."""
    starts = (ids == IMAGE) & (ids.roll(1, -1) != IMAGE)
    tiles = _local(int(starts.sum()))
    return {"num_local_patches": tiles, "patches_grid": [[2, 1] if n else [1, 1] for n in tiles]}


def _ovis2() -> Any:
    vision = {**VIT, "image_size": 32, "hidden_stride": 2, "vocab_size": 21, "num_visual_indicator_tokens": 5}
    config = transformers.Ovis2Config(
        vision_config=vision,
        text_config=text("qwen2"),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[VISION_START, GLOBAL, TILE, BREAK, VISION_END],
        vocab_size=VOCABULARY,
        hidden_size=64,
        tie_word_embeddings=False,
    )
    return transformers.Ovis2ForConditionalGeneration(config)


def _ovis2_images(counts: tuple[int, ...]) -> Pixels:
    """A view of the whole, and for every other image a row of two tiles with a separator between them."""
    each = [3 - 2 * (i % 2) for i in range(sum(counts))]
    tile = [IMAGE] * 16
    tiles = [*tile, TILE, *tile]
    blocks = [[VISION_START, *tile, GLOBAL, *(tiles if k == 3 else []), VISION_END] for k in each]
    return {"pixel_values": noise(sum(each), 3, 32, 32)}, blocks


def _idefics2(*, latents: int) -> Any:
    perceiver = {
        "hidden_size": 64,
        "resampler_n_latents": latents,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 16,
        "num_key_value_heads": 2,
    }
    config = transformers.Idefics2Config(
        vision_config=VIT,
        perceiver_config=perceiver,
        text_config=text("mistral", head_dim=16, sliding_window=None),
        image_token_id=IMAGE,
    )
    return transformers.Idefics2ForConditionalGeneration(config)


def _resampled(counts: tuple[int, ...], *, tiles: int, tokens: int) -> Pixels:
    """Two sizes of images in one padded tensor; with 5 tiles each is four crops and the whole."""
    most = max(counts)
    sizes = [(24, 24 - 8 * (i % 2)) for i in range(sum(counts))]
    mask = torch.zeros(len(counts), most * tiles, 24, 24, dtype=torch.bool)
    image = iter(sizes)
    for sample, count in enumerate(counts):
        for i in range(count):
            height, width = next(image)
            mask[sample, i * tiles : (i + 1) * tiles, :height, :width] = True
    pixels = noise(len(counts), most * tiles, 3, 24, 24) * mask[:, :, None]
    block = [VISION_START, *[*[IMAGE] * tokens, VISION_START] * tiles]
    return {"pixel_values": pixels, "pixel_attention_mask": mask}, [block] * len(sizes)


def _lfm3_vl() -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "patch_size": 4,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention", "conv"],
    }
    layers = ["conv", "full_attention", "sliding_attention", "conv"]
    config = transformers.Lfm3VlConfig(
        vision_config=vision,
        text_config=text("lfm3", head_dim=16, sliding_window=64, conv_L_cache=3, layer_types=layers),
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        projector_hidden_size=64,
        tie_word_embeddings=False,
        **IDS,
    )
    return transformers.Lfm3VlForConditionalGeneration(config)


def _hyperclovax() -> Any:
    vision = {
        "model_type": "qwen2_5_vl_vision",
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 48,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [2],
    }
    config = transformers.HyperCLOVAXVisionV2Config(
        vision_config=vision, text_config=text("hyperclovax"), tie_word_embeddings=False, **IDS
    )
    return transformers.HyperCLOVAXVisionV2ForConditionalGeneration(config)


def _packed(grids: list[list[int]], names: tuple[str, str]) -> dict[str, torch.Tensor]:
    values = noise(sum(t * h * w for t, h, w in grids), 3 * 2 * 4 * 4)
    return dict(zip(names, (values, torch.tensor(grids)), strict=True))


def _grids(counts: tuple[int, ...]) -> Pixels:
    grids = [[1, 8 + 4 * (i % 2), 12] for i in range(sum(counts))]
    return _packed(grids, ("pixel_values", "image_grid_thw")), bordered([h * w // 4 for _, h, w in grids])


def _clips(counts: tuple[int, ...], *, stamps: bool) -> Pixels:
    """Three temporal steps, each in a block of its own behind the text of its time, or all in one block."""
    grids = [[3, 8, 8 + 4 * (i % 2)] for i in range(sum(counts))]
    blocks = []
    for t, h, w in grids:
        if stamps:
            frame = [VISION_START, *[VIDEO] * (h * w // 4), VISION_END]
            blocks.append([token for i in range(t) for token in (20, 30 + i, *frame)])
        else:
            blocks += bordered([t * h * w // 4], VIDEO)
    return _packed(grids, ("pixel_values_videos", "video_grid_thw")), blocks


def _separator(image: int) -> list[int]:
    """The last row of an image: 3 views of 16 rows, or one."""
    return [16 * (1 if image % 2 else 3)]


FAMILIES = [
    Family("granite_docling", partial(_granite_docling, size=32), partial(_tiles, size=32)),
    Family("granite_docling-fine", partial(_granite_docling, size=16), _fine),
    Family("lighton_ocr", _lighton_ocr, _padded),
    Family("qianfan_ocr", _qianfan_ocr, _joined),
    Family("deepseek_ocr2", _deepseek_ocr2, _deepseek_ocr2_images, protected=_separator),
    Family("unlimited_ocr", _unlimited_ocr, _unlimited_ocr_images, extra=_layout),
    Family("ovis2", _ovis2, _ovis2_images),
    Family("idefics2", partial(_idefics2, latents=24), partial(_resampled, tiles=1, tokens=24)),
    Family("idefics2-split", partial(_idefics2, latents=8), partial(_resampled, tiles=5, tokens=8), apart=True),
    Family("lfm3_vl", _lfm3_vl, _grids),
    Family("lfm3_vl-video", _lfm3_vl, partial(_clips, stamps=True), modality="video"),
    Family("hyperclovax_vision_v2", _hyperclovax, _grids),
    Family("hyperclovax_vision_v2-video", _hyperclovax, partial(_clips, stamps=False), modality="video"),
]

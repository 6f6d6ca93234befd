"""Tiny randomly initialised vision transformers, of transformers and of timm, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import transformers
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .families.base import noise

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
}
TIMM = {"img_size": 24, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4, "mlp_ratio": 2, "num_classes": 5}
LABELS = 5
PROMPTS = torch.tensor([[1, 7, 9, 30, 2], [1, 11, 4, 30, 2]])


@dataclass(frozen=True)
class Tower:
    """One tiny model.

    Attributes:
        build: makes it.
        blocks: where its blocks are.
        prefix: class, distillation and register tokens.
        grid: (frames, rows, columns) of patches.
        inputs: maps a batch size to its arguments.
        has_class: the first of the prefix is a class token.
    """

    name: str
    build: Callable[[], nn.Module]
    blocks: str
    prefix: int = 0
    grid: tuple[int, int, int] = (1, 6, 6)
    inputs: Callable[[int], dict[str, Tensor]] = lambda batch: {"pixel_values": noise(batch, 3, 24, 24)}
    has_class: bool = True

    @property
    def timm(self) -> bool:
        return self.name.startswith("timm")

    @property
    def patches(self) -> int:
        frames, rows, columns = self.grid
        return frames * rows * columns

    def model(self, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        """A model of its own. Wide weights: a wrong key, size or place moves what comes out by 0.01 to 1."""
        torch.manual_seed(0)
        model = self.build()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1 and any(one in name for one in ("norm", "gamma", "lambda", "logit")):
                    parameter.add_(0.1 * drawn)
                else:
                    parameter.copy_((0.17 if parameter.ndim > 1 else 0.1) * drawn)
        if self.timm:
            for module in model.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = attention == "sdpa"
        else:
            model.set_attn_implementation(attention)
        return model.eval().to(dtype)

    def run(self, model: Any, inputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Everything the model answers, by name; of a batch of three by default, in the precision of the model."""
        dtype = next(model.parameters()).dtype
        inputs = self.inputs(3) if inputs is None else inputs
        inputs = {
            name: one.to(dtype) if torch.is_tensor(one) and one.is_floating_point() else one
            for name, one in inputs.items()
        }
        if not self.timm:
            return _flat(model(**inputs, output_hidden_states=True))
        pixels = inputs["pixel_values"]
        rows = model.forward_intermediates(pixels, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
        behind = {f"behind[{i}]": one for i, one in enumerate(rows)}
        if isinstance(rows[0], tuple):
            behind = {f"behind[{i}]": torch.cat([prefix, patches], 1) for i, (patches, prefix) in enumerate(rows)}
        return {"logits": model(pixels), "features": model.forward_features(pixels), **behind}


def _flat(output: Any) -> dict[str, Tensor]:
    found = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, tuple):
            found |= {f"{name}[{i}]": one for i, one in enumerate(value)}
        elif hasattr(value, "items"):
            found |= {f"{name}.{inner}": one for inner, one in _flat(value).items()}
    return found


def _hf(model: str, config: str, **changes: Any) -> Callable[[], nn.Module]:
    def build():
        return getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **changes}))

    return build


def _clip() -> nn.Module:
    text = {
        **SIZES,
        "num_hidden_layers": 1,
        "vocab_size": 40,
        "max_position_embeddings": 8,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    text = {name: value for name, value in text.items() if name not in ("image_size", "patch_size")}
    config = transformers.CLIPConfig(vision_config={**SIZES, "projection_dim": 16}, text_config=text, projection_dim=16)
    return transformers.CLIPModel(config)


def _packed(batch: int) -> dict[str, Tensor]:
    """Patches of a NaFlex image that fills all the places there are."""
    return {
        "pixel_values": noise(batch, 36, 3 * 4 * 4),
        "pixel_attention_mask": torch.ones(batch, 36, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 9]] * batch),
    }


def _clips(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": noise(batch, 16, 3, 16, 16)}


def _pairs(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": noise(batch, 3, 24, 24), "input_ids": PROMPTS}


def _vit(**changes: Any) -> Callable[[], nn.Module]:
    return lambda: VisionTransformer(**{**TIMM, **changes})


def _eva(**changes: Any) -> Callable[[], nn.Module]:
    return lambda: Eva(**{**TIMM, "use_rot_pos_emb": True, "swiglu_mlp": True, "ref_feat_shape": (4, 4), **changes})


VIDEOMAE = {"image_size": 16, "num_frames": 16, "tubelet_size": 2, "num_hidden_layers": 6, "num_labels": LABELS}
SIGLIP2 = {"num_patches": 64, "image_size": 24}
DINOV3 = {"num_register_tokens": 4, "layerscale_value": 0.8, "rope_theta": 20.0}
INTERNVL = {"image_size": [24, 24], "patch_size": [4, 4], "layer_scale_init_value": 0.8, "use_qk_norm": True}

HF = [
    Tower("clip", _hf("CLIPVisionModel", "CLIPVisionConfig"), "encoder.layers", 1),
    Tower(
        "clip-projection",
        _hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=16),
        "vision_model.encoder.layers",
        1,
    ),
    Tower("clip-dual", _clip, "vision_model.encoder.layers", 1, inputs=_pairs),
    Tower("siglip", _hf("SiglipVisionModel", "SiglipVisionConfig"), "encoder.layers", has_class=False),
    Tower(
        "siglip2",
        _hf("Siglip2VisionModel", "Siglip2VisionConfig", **SIGLIP2),
        "encoder.layers",
        grid=(1, 4, 9),
        inputs=_packed,
        has_class=False,
    ),
    Tower("vit", _hf("ViTForImageClassification", "ViTConfig", num_labels=LABELS), "vit.layers", 1),
    Tower("deit", _hf("DeiTForImageClassificationWithTeacher", "DeiTConfig", num_labels=LABELS), "deit.layers", 2),
    Tower(
        "dinov2",
        _hf("Dinov2ForImageClassification", "Dinov2Config", num_labels=LABELS, layerscale_value=0.8),
        "dinov2.encoder.layer",
        1,
    ),
    Tower(
        "dinov2-registers",
        _hf(
            "Dinov2WithRegistersForImageClassification",
            "Dinov2WithRegistersConfig",
            num_labels=LABELS,
            num_register_tokens=4,
            layerscale_value=0.8,
        ),
        "dinov2_with_registers.encoder.layer",
        5,
    ),
    Tower("dinov3", _hf("DINOv3ViTModel", "DINOv3ViTConfig", **DINOV3), "model.layer", 5),
    Tower(
        "dinov3-gated",
        _hf("DINOv3ViTModel", "DINOv3ViTConfig", **DINOV3, use_gated_mlp=True, hidden_act="silu"),
        "model.layer",
        5,
    ),
    Tower(
        "videomae",
        _hf("VideoMAEForVideoClassification", "VideoMAEConfig", **VIDEOMAE),
        "videomae.encoder.layer",
        grid=(8, 4, 4),
        inputs=_clips,
        has_class=False,
    ),
    Tower("internvl", _hf("InternVLVisionModel", "InternVLVisionConfig", **INTERNVL), "encoder.layer", 1),
]
MAP = {"global_pool": "map", "class_token": False}
TIMM_TOWERS = [
    Tower("timm-vit", _vit(), "blocks", 1),
    Tower("timm-vit-avg", _vit(global_pool="avg", class_token=False), "blocks", has_class=False),
    Tower("timm-vit-registers", _vit(reg_tokens=3, no_embed_class=True, global_pool="avg"), "blocks", 4),
    Tower("timm-vit-scales", _vit(init_values=0.8, qk_norm=True, scale_attn_norm=True), "blocks", 1),
    Tower("timm-vit-map", _vit(**MAP), "blocks", has_class=False),
    Tower("timm-eva", _eva(qkv_fused=False, scale_mlp=True, scale_attn_inner=True), "blocks", 1),
    Tower(
        "timm-eva-fused", _eva(qkv_fused=True, init_values=0.8, global_pool="token", use_abs_pos_emb=False), "blocks", 1
    ),
    Tower("timm-eva-half", _eva(qkv_fused=True, qkv_bias=False, qk_norm=True, rope_rotate_half=True), "blocks", 1),
]
TOWERS = HF + TIMM_TOWERS
BY_NAME = {tower.name: tower for tower in TOWERS}

# (name, build): pyramids, windows, post-norm and relative positions, where no token can leave
REFUSED = [
    ("resnet", lambda: transformers.ResNetForImageClassification(_small_resnet())),
    ("swin", lambda: transformers.SwinForImageClassification(_small_swin())),
    ("beit", lambda: transformers.BeitModel(transformers.BeitConfig(**SIZES, use_relative_position_bias=True))),
    ("timm-resnet", lambda: timm.create_model("resnet18")),
    (
        "timm-swin",
        lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(2, 2), embed_dim=16),
    ),
]


def _small_resnet() -> Any:
    return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


def _small_swin() -> Any:
    return transformers.SwinConfig(image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)

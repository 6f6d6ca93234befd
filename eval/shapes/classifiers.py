"""Two small classifiers trained here, of pictures and of clips: how they are built, loaded and asked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    CLIPVisionModel,
    PreTrainedModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
)

from .inference import existing
from .modeling import pixel_values
from .motion_data import FRAMES, MOTIONS, SMALL, TUBELET
from .scenes import PATCH, SIZE
from .vit_data import LABELS, object_batch

VIT_CHECKPOINT = Path(__file__).parent / "checkpoint_vit"
MOTION_CHECKPOINT = Path(__file__).parent / "checkpoint_motion"
DEPTH = 8  # layers of the image classifier
PROBED = 64  # train pictures whose tokens tell the deviation that a folded norm divides by


def load_vit(folder: Path = VIT_CHECKPOINT) -> tuple[ViTForImageClassification, BaseImageProcessor]:
    """The trained image classifier in eval mode and float32, and its processor."""
    return _loaded(ViTForImageClassification, folder, "vit")


def load_motion(folder: Path = MOTION_CHECKPOINT) -> tuple[VideoMAEForVideoClassification, BaseImageProcessor]:
    """The trained clip classifier in eval mode and float32, and its processor."""
    return _loaded(VideoMAEForVideoClassification, folder, "motion")


def _loaded(kind: type[PreTrainedModel], folder: Path, name: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    model = kind.from_pretrained(existing(folder, f"classifier_train {name}"), dtype=torch.float32)
    return model.eval(), AutoImageProcessor.from_pretrained(folder)


@torch.inference_mode()
def classify(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    seen: Sequence[Image.Image | np.ndarray] | Sequence[Sequence[Image.Image] | np.ndarray],
    batch_size: int = 32,
) -> list[int]:
    """The label of every picture, or of every clip: an index into `LABELS` or `MOTIONS`.

    `seen`: pictures, or uint8 arrays [height, width, 3]; of clips lists of FRAMES of these, or arrays [FRAMES, ...].
    """
    found: list[int] = []
    for start in range(0, len(seen), batch_size):
        pixels = processor(list(seen[start : start + batch_size]), return_tensors="pt")["pixel_values"]
        found += model(pixels.to(model.device, model.dtype)).logits.argmax(-1).tolist()
    return found


def _labels(names: tuple[str, ...]) -> dict:
    """What a config says about labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


@torch.no_grad()
def build_vit(tower: CLIPVisionModel, depth: int = DEPTH) -> ViTForImageClassification:
    """An image classifier that begins as a trained CLIP tower; layers above the tower's begin as the identity.

    Its last layer norm and its classifier are new.
    """
    config = tower.config
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=depth,
            num_attention_heads=config.num_attention_heads,
            image_size=SIZE,
            patch_size=PATCH,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            **_labels(LABELS),
        )
    )
    fold_norm(tower, model)
    for layer, origin in zip(model.vit.layers, tower.encoder.layers, strict=False):
        for name in ("q_proj", "k_proj", "v_proj"):
            _copy(getattr(origin.self_attn, name), getattr(layer.attention, name))
        _copy(origin.self_attn.out_proj, layer.attention.o_proj)
        _copy(origin.layer_norm1, layer.layernorm_before)
        _copy(origin.layer_norm2, layer.layernorm_after)
        _copy(origin.mlp.fc1, layer.mlp.fc1)
        _copy(origin.mlp.fc2, layer.mlp.fc2)
    for layer in model.vit.layers[len(tower.encoder.layers) :]:
        for linear in (layer.attention.o_proj, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    return model


def _copy(origin: nn.Module, to: nn.Module) -> None:
    to.load_state_dict(origin.state_dict())


def fold_norm(tower: CLIPVisionModel, model: ViTForImageClassification) -> None:
    """Embeddings with CLIP's norm before the first layer folded in, as a ViT has none there.

    Subtracting the mean and multiplying by the norm's weight are linear, so they go into the patches' weights and the
    positions. Every token is divided by the mean standard deviation of the patch tokens of some train pictures, not by
    its own: but for the norm's bias, a patch is the norm's output at another length. CLS knows no picture and is exact.
    """
    origin, norm, to = tower.embeddings, tower.pre_layrnorm, model.vit.embeddings
    deviation = origin(pixel_values(object_batch(0, PROBED)[0]))[:, 1:].std(-1, unbiased=False).mean()

    def normed(tokens: torch.Tensor) -> torch.Tensor:
        return (tokens - tokens.mean(-1, keepdim=True)) / deviation * norm.weight

    patches, places = origin.patch_embedding.weight, origin.position_embedding.weight
    to.patch_embeddings.projection.weight.copy_(normed(patches.movedim(0, -1)).movedim(-1, 0))
    to.patch_embeddings.projection.bias.zero_()
    to.position_embeddings.copy_((normed(places) + norm.bias)[None])
    to.cls_token.copy_(norm(origin.class_embedding + places[0]) - to.position_embeddings[:, :1])


def build_motion(width: int = 96, depth: int = 9, heads: int = 3) -> VideoMAEForVideoClassification:
    """A randomly initialised clip classifier that averages its last tokens."""
    return VideoMAEForVideoClassification(
        VideoMAEConfig(
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            image_size=SMALL,
            patch_size=PATCH,
            num_frames=FRAMES,
            tubelet_size=TUBELET,
            use_mean_pooling=True,
            **_labels(MOTIONS),
        )
    )


def vit_processor() -> BaseImageProcessor:
    """Resizes any picture to the model's square, values to [-1, 1]. PIL's backend, as torchvision is not required."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def motion_processor() -> BaseImageProcessor:
    """The same for clips, of which the middle square is taken."""
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    square = {"height": SMALL, "width": SMALL}
    return VideoMAEImageProcessorPil(
        size={"shortest_edge": SMALL}, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def save(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path) -> None:
    """A standard Hugging Face folder, weights in bfloat16; the copy leaves the model in training untouched."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)

"""The video model: a small LLaVA-OneVision that starts from the image model, and the form in which it is trained."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)

from .language import BOS, EOS, IMAGE, PAD, VIDEO, VIDEO_WORDS, tokenizer
from .modeling import ROW, packed_attention, pixel_values
from .scenes import GRID, SIZE
from .video_clips import FRAMES

CELLS = (GRID // 2) ** 2  # visual tokens of a frame: the class halves both sides of the patch grid
PREFIX = 1 + FRAMES * CELLS + 1  # <bos>, the frames, and the newline that ends a video
SEEN, NAMED = 2, 3  # decoder layers whose output tells what a patch's and a named object do, in training

AttentionInterface.register("shapes_packed_video", partial(packed_attention, start=PREFIX))


def build(image_model: LlavaForConditionalGeneration) -> LlavaOnevisionForConditionalGeneration:
    """The video model with the weights of the image model; words it does not know start from noise of their scale."""
    ids = {word: i for i, word in enumerate(VIDEO_WORDS)}
    old = image_model.config
    text = type(old.text_config).from_dict(old.text_config.to_dict() | {"vocab_size": len(VIDEO_WORDS)})
    special = {"pad_token_id": ids[PAD], "bos_token_id": ids[BOS], "eos_token_id": ids[EOS]}
    config = LlavaOnevisionConfig(
        vision_config=old.vision_config,
        text_config=text,
        image_token_index=ids[IMAGE],
        video_token_index=ids[VIDEO],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_aspect_ratio="anyres_max_1",
        tie_word_embeddings=True,
        **special,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    generation = model.generation_config
    for name, value in (special | {"max_new_tokens": 2, "do_sample": False}).items():
        setattr(generation, name, value)
    _copy(image_model, model)
    return model


@torch.no_grad()
def _copy(source: LlavaForConditionalGeneration, target: LlavaOnevisionForConditionalGeneration) -> None:
    old, new = source.model, target.model
    new.vision_tower.load_state_dict(old.vision_tower.state_dict())
    new.multi_modal_projector.load_state_dict(old.multi_modal_projector.state_dict())
    weights = old.language_model.state_dict()
    words = weights["embed_tokens.weight"]
    more = torch.randn(len(VIDEO_WORDS) - len(words), words.shape[1]) * words.std()
    new.language_model.load_state_dict(weights | {"embed_tokens.weight": torch.cat([words, more])})
    new.image_newline.copy_(words[VIDEO_WORDS.index(EOS)])


def processor() -> LlavaOnevisionProcessor:
    """Text with `<video>` and clips -> `input_ids` (one id per visual token) and `pixel_values_videos`.

    The video processor of this class needs torchvision.
    """
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionVideoProcessor

    pixels = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(**pixels, image_grid_pinpoints=[[SIZE, SIZE]]),
        tokenizer=tokenizer(vocabulary=VIDEO_WORDS, placeholders={"image_token": IMAGE, "video_token": VIDEO}),
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=GRID * GRID + 1,  # with CLS, as the strategy takes one off
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        video_token=VIDEO,
        vision_aspect_ratio="anyres_max_1",
    )


class PackedVideo(nn.Module):
    """The model as it is trained: clips both ways round, each with many short rows of text; see `modeling.Packed`."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration, compiled: bool = True):
        super().__init__()
        self.model = model
        model.model.vision_tower.set_attn_implementation("shapes_plain")
        model.model.language_model.set_attn_implementation("shapes_packed_video")
        self._tower = torch.compile(self._run_tower) if compiled else self._run_tower
        self._decoder = torch.compile(self._run_decoder) if compiled else self._run_decoder

    def _run_tower(self, pixels):
        return self.model.model.vision_tower(pixels).last_hidden_state

    def _run_decoder(self, features, rows):
        base, batch = self.model.model, rows.shape[0]
        projected = base.apply_pooling(base.multi_modal_projector(features[:, 1:]))
        frames = projected.unflatten(0, (batch // 2, FRAMES))
        visual = torch.cat([frames, frames.flip(1)]).flatten(1, 2)
        bos = torch.full((batch, 1), base.config.text_config.bos_token_id)
        words = base.get_input_embeddings()(torch.cat([bos, rows.flatten(1)], 1))
        newline = base.image_newline.expand(batch, 1, -1)
        embeds = torch.cat([words[:, :1], visual.to(words.dtype), newline.to(words.dtype), words[:, 1:]], 1)
        positions = torch.cat([torch.arange(PREFIX), (torch.arange(ROW) + PREFIX).repeat(rows.shape[1])])[None]
        decoder, hidden, kept = base.language_model, embeds, {}
        rotary = decoder.rotary_emb(hidden, positions)
        for number, layer in enumerate(decoder.layers, 1):
            hidden = layer(hidden, position_ids=positions, position_embeddings=rotary)
            kept[number] = hidden
        last, named = (state[:, PREFIX:].reshape(*rows.shape, -1) for state in (decoder.norm(hidden), kept[NAMED]))
        return last, named, kept[SEEN][:, 1 : PREFIX - 1]

    def tower(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [B, T, SIZE, SIZE, 3] -> features [B * T, 1 + GRID * GRID, width], CLS first."""
        return self._tower(pixel_values(frames.flatten(0, 1)))

    def decoder(self, features: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """features, ids [2 B, R, ROW] (clips forwards, then the same clips backwards) -> last states of the rows,
        their states after layer NAMED, and the states of the visual tokens after layer SEEN [2 B, T * CELLS, width].
        """
        return self._decoder(features, rows)

    def word_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy where `targets` [2 B, R, ROW] is not -100, and which of those words are right."""
        chosen = targets >= 0
        logits = self.model.lm_head(hidden[chosen]).float()
        return F.cross_entropy(logits, targets[chosen]), logits.argmax(-1) == targets[chosen]

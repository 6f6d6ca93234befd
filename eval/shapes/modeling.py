"""The architecture: a small LLaVA, and the attention it is trained with."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from .language import BOS, EOS, IMAGE, PAD, WORDS
from .scenes import GRID, PATCH, SIZE

WIDTH, HEADS, VISION_LAYERS, TEXT_LAYERS = 128, 4, 5, 4
VISUAL = GRID * GRID  # visual tokens of an image
PREFIX = 1 + VISUAL  # <bos> and the visual tokens: what every question about an image shares
MIDDLE = 2  # decoder layer whose output tells where a named object is, in training
ROW = 12  # tokens of one packed question with its answer, padded


def pixel_values(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1], as the processor scales them."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def build(
    width=WIDTH, heads=HEADS, vision_layers=VISION_LAYERS, text_layers=TEXT_LAYERS
) -> LlavaForConditionalGeneration:
    """A randomly initialised model. The last tower layer is read, without CLS; word embeddings are tied to the head."""
    ids = {word: i for i, word in enumerate(WORDS)}
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=vision_layers,
        num_attention_heads=heads,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=width,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=math.ceil(width * 8 / 3 / 64) * 64,
        num_hidden_layers=text_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL,
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
    )
    model = LlavaForConditionalGeneration(config)
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id, generation.eos_token_id = ids[PAD], ids[BOS], ids[EOS]
    generation.max_new_tokens, generation.do_sample = 2, False
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: LlavaForConditionalGeneration) -> None:
    """What makes a tower this small learn within minutes: positions start as 2-D waves, patches at unit scale."""
    embeddings = model.model.vision_tower.embeddings
    width = embeddings.embed_dim
    rate = 1.0 / (GRID * 2) ** (torch.arange(width // 4) / (width // 4))  # wavelengths of 6 to 200 patches
    at = torch.arange(GRID)[:, None] * rate
    waves = torch.cat([at.sin(), at.cos()], -1)  # [GRID, width / 2]
    grid = torch.cat([waves[:, None].expand(-1, GRID, -1), waves[None].expand(GRID, -1, -1)], -1)
    embeddings.position_embedding.weight.zero_()[1:] = 0.5 * grid.reshape(VISUAL, width)
    nn.init.normal_(embeddings.patch_embedding.weight, std=1 / math.sqrt(3 * PATCH * PATCH))
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)


def _softmax_attention(query, key, value, scaling, hidden=None):
    """Plain attention; `hidden` marks the pairs [query, key] that may not see each other."""
    scores = query @ key.transpose(-1, -2) * scaling
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def plain_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Full attention [batch, heads, N, head_dim] for the tower, spelt out: the backward of sdpa is slow on a CPU."""
    return _softmax_attention(query, key, value, scaling).transpose(1, 2), None


def packed_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, start=PREFIX, **kwargs):
    """Causal attention of a prefix followed by rows of ROW tokens; a row sees the prefix and itself, never another row.

    The same as one 4-D mask over the whole sequence, but the prefix never computes its scores against the rows.
    `start`: length of the prefix.
    """
    length = query.shape[2]
    at = torch.arange(length, device=query.device)
    row = (at - start) // ROW
    later = at[None] > at[:, None]
    other_row = (at[None] >= start) & (row[None] != row[:, None])
    prefix = _softmax_attention(
        query[:, :, :start], key[:, :, :start], value[:, :, :start], scaling, later[:start, :start]
    )
    rows = _softmax_attention(query[:, :, start:], key, value, scaling, (later | other_row)[start:])
    return torch.cat([prefix, rows], 2).transpose(1, 2), None


AttentionInterface.register("shapes_plain", plain_attention)
AttentionInterface.register("shapes_packed", packed_attention)


class Packed(nn.Module):
    """The model as it is trained: one image, many short rows of text. Tower and decoder compile separately.

    Compiling both as one function is many times slower on a CPU, and so is either of them uncompiled.
    """

    def __init__(self, model: LlavaForConditionalGeneration, compiled: bool = True):
        super().__init__()
        self.model = model
        model.model.vision_tower.set_attn_implementation("shapes_plain")
        model.model.language_model.set_attn_implementation("shapes_packed")
        self._tower = torch.compile(self._run_tower) if compiled else self._run_tower
        self._decoder = torch.compile(self._run_decoder) if compiled else self._run_decoder

    def _run_tower(self, pixels):
        return self.model.model.vision_tower(pixels).last_hidden_state

    def _run_decoder(self, features, rows):
        base, batch = self.model.model, rows.shape[0]
        bos = torch.full((batch, 1), base.config.text_config.bos_token_id)
        words = base.get_input_embeddings()(torch.cat([bos, rows.flatten(1)], 1))
        projected = base.multi_modal_projector(features[:, 1:])
        embeds = torch.cat([words[:, :1], projected.to(words.dtype), words[:, 1:]], 1)
        positions = torch.cat([torch.arange(PREFIX), (torch.arange(ROW) + PREFIX).repeat(rows.shape[1])])[None]
        decoder, hidden, middle = base.language_model, embeds, None
        rotary = decoder.rotary_emb(hidden, positions)
        for number, layer in enumerate(decoder.layers, 1):  # packed_attention needs no mask
            hidden = layer(hidden, position_ids=positions, position_embeddings=rotary)
            middle = hidden if number == MIDDLE else middle
        rows_of = [state[:, PREFIX:].reshape(*rows.shape, -1) for state in (decoder.norm(hidden), middle)]
        return *rows_of, projected

    def tower(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [B, SIZE, SIZE, 3] -> features [B, 1 + VISUAL, width], CLS first."""
        return self._tower(pixel_values(image))

    def decoder(self, features: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """features, ids [B, R, ROW] -> last and middle states [B, R, ROW, width], projected [B, VISUAL, width]."""
        return self._decoder(features, rows)

    def word_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy where `targets` [B, R, ROW] is not -100, and which of those words are right."""
        chosen = targets >= 0
        logits = self.model.lm_head(hidden[chosen]).float()
        return F.cross_entropy(logits, targets[chosen]), logits.argmax(-1) == targets[chosen]

"""Stage `encoder`: tokens of texts leave in front of the first block of a BERT-type encoder.

The encoder's arguments are cut to the tokens that stay: ids, token types, mask, and the position ids that these tokens
have in the whole text. So what its blocks read are the rows they would have read, and it makes its masks itself, as its
version and its attention implementation need them.

With `restore`, last_hidden_state has as many rows as ever: those of tokens that left hold the mean of the rows of their
text's tokens that stayed, those of padding hold zeros. The mean over the user's mask is then the mean over what stayed,
the maximum over it is the maximum, and the row of the first token is its own: pooling needs no change. Without, it has
the rows of tokens that stayed, packed to the left, and `report().attention_mask` says which of them are padding.
`hidden_states` and `attentions`, where asked for, are short in any case.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InvalidFeaturesError, UnsupportedModelError, UnsupportedPolicyError
from ..ops import keep_best, tokens_left
from ..policies.encoder import EncoderPolicy, TextTokens
from .cache import Life
from .encoder_report import EncoderReport
from .hook import Hook, by_name
from .parts import unwrapped

# Of these, places enter through position ids alone, and every block reads every token
FAMILIES = ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
HEADS = ("ForSequenceClassification", "ForMultipleChoice")  # that read the first token alone
PER_TOKEN = ("input_ids", "token_type_ids", "inputs_embeds")


@dataclass(frozen=True)
class EncoderParts:
    """A text encoder.

    Attributes:
        model: as the user gave it, PEFT's around it taken off.
        encoder: the part of it that has embeddings and blocks.
        entered: modules whose call is a forward.
    """

    model: nn.Module
    encoder: nn.Module
    entered: tuple[nn.Module, ...]


def find_encoder(model: Any) -> EncoderParts:
    """The parts of a text encoder.

    Raises:
        UnsupportedModelError: tokens cannot leave it exactly; says why.
    """
    given, model = model, unwrapped(model)
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            f"model={kind} is compiled already, and a compiled graph ignores hooks added later: wrap the model first, "
            "then call torch.compile."
        )
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None)
    if not isinstance(model, PreTrainedModel) or family not in FAMILIES:
        raise UnsupportedModelError(
            f"model={kind} is no text encoder of a family that is known: give one of transformers, of "
            f"{', '.join(FAMILIES)}."
        )
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"model={kind} is set up as a decoder (is_decoder=True): give an encoder.")
    encoder = model.base_model
    if model is not encoder and not kind.endswith(HEADS):
        raise UnsupportedModelError(
            f"model={kind} has a head that answers for every token, and tokens that left have no answer: give the bare "
            f"encoder or one with a head of the kind {' or '.join(HEADS)}."
        )
    if "position_ids" not in inspect.signature(encoder.forward).parameters:
        raise UnsupportedModelError(f"model={kind} takes no position_ids in this version of transformers: update it.")
    return EncoderParts(model, encoder, (given, model, encoder))


@dataclass(frozen=True, kw_only=True)
class EncoderCall:
    """B texts on their way through the encoder.

    Attributes:
        real, keep: [B, L] bool, what is no padding, and what stays.
        lengths, kept: tokens of each text before and behind.
        shares: [B] rho.
        index: [B, L'] long, places of those that stay, ascending, then of others; None: nothing left.
        valid: [B, L'] bool, False at padding.
    """

    real: Tensor
    keep: Tensor
    lengths: list[int]
    kept: list[int]
    shares: Tensor
    index: Tensor | None = None
    valid: Tensor | None = None

    def restored(self, rows: Tensor) -> Tensor:
        """[B, L, D] of [B, L', D], see above."""
        weight = self.valid[..., None]
        exact = torch.where(weight, rows, 0).to(torch.promote_types(rows.dtype, torch.float32))
        mean = exact.sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
        place = (self.keep.long().cumsum(1) - 1).clamp_min(0)
        back = rows.gather(1, place[..., None].expand(*place.shape, rows.shape[-1]))
        whole = torch.where(self.keep[..., None], back, mean.to(rows.dtype))
        return torch.where(self.real[..., None], whole, 0)


class EncoderStage:
    """The hooks of one text encoder.

    Args:
        parts: of the model.
        policy: decides.
        restore: whether last_hidden_state gets its rows back, see above.
    """

    def __init__(self, parts: EncoderParts, policy: EncoderPolicy, *, restore: bool):
        self.parts, self.policy, self.restore = parts, policy, restore
        self.enabled, self.life = True, Life()
        self._last: EncoderCall | None = None
        self._local = threading.local()
        self._hooks: list[Any] = []

    @property
    def every_policy(self) -> list[EncoderPolicy]:
        return [self.policy]

    def install(self) -> None:
        """Register the hooks; on any failure none stays."""
        encoder = self.parts.encoder
        try:
            self._hooks.append(encoder.register_forward_pre_hook(Hook(self._enter), with_kwargs=True))
            self._hooks.append(encoder.register_forward_hook(Hook(self._leave)))
            places = encoder.embeddings.position_embeddings
            self._hooks.append(places.register_forward_pre_hook(Hook(self._note_places)))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        self.life.alive = False
        while self._hooks:
            self._hooks.pop().remove()

    def report(self) -> EncoderReport:
        """What the last call did. Reads the device only here."""
        call, config, trained = self._last, self.parts.encoder.config, self.policy.trained
        known = {}
        if call is not None:
            known = {"lengths": call.lengths, "kept": call.kept, "keep": call.keep.cpu()}
            known |= {"shares": [round(float(share), 6) for share in call.shares.cpu()]}
        return EncoderReport(
            policy=repr(self.policy),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or config.hidden_dim,
            choice=None if trained is None else trained.flops,
            **known,
        )

    def _note_places(self, module: nn.Module, args: tuple) -> None:
        self._local.places = args[0]

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        self._local.call = None
        given = by_name(module, args, kwargs)
        segment = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
        if not self.enabled or segment is None:
            return None
        mask = self._checked(given, segment)
        real = torch.ones(segment.shape[:2], dtype=torch.bool, device=segment.device) if mask is None else mask.bool()
        embeddings, places = self._embedded(module, given)
        call = self._choose(TextTokens(embeddings=embeddings, real=real))
        self._last = call
        if call.index is None:
            return None
        self._local.call = call
        cut = dict(given)
        for name in PER_TOKEN:
            if (value := given.get(name)) is not None:
                cut[name] = _taken(value.expand(len(real), *value.shape[1:]), call.index)
        cut["position_ids"] = _taken(places.expand_as(real), call.index)
        cut["attention_mask"] = call.valid.to(torch.long if mask is None else mask.dtype)
        return (), cut

    def _checked(self, given: dict[str, Any], segment: Tensor) -> Tensor | None:
        """The attention mask, in a call in which tokens can leave."""
        mask, kind = given.get("attention_mask"), type(self.parts.model).__name__
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != segment.shape[:2]):
            raise UnsupportedPolicyError(
                f"attention_mask of model={kind} is none of [batch, length], and which tokens are padding cannot be "
                "told: give a mask as a tokenizer makes it."
            )
        if any(given.get(name) is not None for name in ("encoder_hidden_states", "past_key_values")):
            raise UnsupportedPolicyError(
                f"model={kind} is called with encoder_hidden_states or past_key_values, as a decoder: call it with a "
                "whole text."
            )
        return mask

    def _embedded(self, module: nn.Module, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Input embeddings of all tokens, and their position ids."""
        names = inspect.signature(type(module.embeddings).forward).parameters
        wanted = {name: given[name] for name in (*PER_TOKEN, "position_ids") if name in names and name in given}
        if "input_ids" in names:
            wanted.setdefault("input_ids", None)  # DistilBERT's has no default
        with torch.no_grad():
            embeddings = module.embeddings(**wanted)
        return embeddings, self._local.places

    def _choose(self, tokens: TextTokens) -> EncoderCall:
        real, n = tokens.real, tokens.real.sum(1)
        scores = self.policy.score(tokens)
        shares = self.policy.shares(tokens, scores)
        count = tokens_left(shares, n)
        good = torch.where(real, scores, 0.0).isfinite().all()
        numbers = torch.stack([n, count, good.long().expand_as(n)])
        lengths, kept, (good, *_) = numbers.tolist()  # the one wait for the device
        if not good:
            raise InvalidFeaturesError(
                f"scores of policy={self.policy.name!r} are NaN or Inf: check the predictor, and the dtype of the "
                "model (fp16 overflows; bf16 or fp32 do not)."
            )
        call = {"real": real, "lengths": lengths, "kept": kept, "shares": shares}
        if kept == lengths:
            return EncoderCall(**call, keep=real)
        keep, most = keep_best(scores, real, count), max(kept)
        index = (~keep).long().argsort(dim=1, stable=True)[:, :most]
        valid = torch.arange(most, device=real.device) < count[:, None]
        return EncoderCall(**call, keep=keep, index=index, valid=valid)

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        call, self._local.call = getattr(self._local, "call", None), None
        if call is None:
            return None
        rows = output[0]
        if not isinstance(rows, Tensor) or rows.shape[:2] != call.index.shape:
            raise UnsupportedModelError(
                f"model={type(module).__name__} answers no hidden states [batch, tokens, width] of the tokens it was "
                "given: use another model."
            )
        if not self.restore:
            return None
        whole = call.restored(rows)
        if isinstance(output, tuple):
            return (whole, *output[1:])
        return type(output)(**{**output, "last_hidden_state": whole})


def _taken(value: Tensor, index: Tensor) -> Tensor:
    """value[b, index[b]] of [B, L, ...]."""
    return value[torch.arange(len(index), device=index.device)[:, None], index]

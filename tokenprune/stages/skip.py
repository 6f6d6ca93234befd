"""Stage `skip`: tokens of a prompt skip blocks of the language model.

In front of a block its arguments are cut to the tokens that it computes, with their positions; behind it they go back
to their places among those that skipped, which are what they were. The cache of each block holds what that block
computed, and a call that continues it gets the masks of that cache. Nothing is skipped in such a call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import (
    InvalidArgumentError,
    InvalidFeaturesError,
    NotEngagedError,
    StaleCacheError,
    UnsupportedModelError,
    UnsupportedPolicyError,
)
from ..policies.skipping import SkipPolicy, SkipTokens, skipped
from ..report import SkipReport
from .cache import CacheState, LayerState, Life, attach, physical_length, state_of
from .checks import Checks
from .continued import segment_of
from .gather import Cut, is_prepared
from .hook import Hook, by_name, nothing
from .layer_call import LayerCall, Sequence
from .layer_inputs import renew
from .layer_plan import attention_of
from .parts import Parts
from .skip_scores import received
from .tap import listen


@dataclass(kw_only=True)
class SkipCall:
    """One prompt, or B of them, on its way through the blocks.

    Attributes:
        real: [B, L] bool, False at padding; place: [B, L] long, of each token in its prompt.
        lengths: tokens of each prompt.
        skips: per block and prompt, tokens that skip it.
        padded: some of `real` is False.
        scores: [B, L] float32, see `SkipTokens`.
        cuts: of every block that was skipped so far, what it computed.
        entered: hidden states that the block which runs was given, where tokens skip it.
        block: that runs.
    """

    real: Tensor
    place: Tensor
    lengths: list[int]
    skips: list[list[int]]
    padded: bool
    scores: Tensor
    cuts: dict[int, Cut] = field(default_factory=dict)
    entered: Tensor | None = None
    block: int = 0
    checks: Checks = field(default_factory=Checks)

    @property
    def computed(self) -> list[list[int]]:
        """Per block and prompt, tokens that are computed."""
        return [[n - k for n, k in zip(self.lengths, one, strict=True)] for one in self.skips]


class SkipStage:
    """The hooks of one wrapped model.

    Args:
        parts: of the model.
        policy: decides who skips.

    Raises:
        InvalidArgumentError: a schedule of another depth.
    """

    def __init__(self, parts: Parts, policy: SkipPolicy):
        self.parts, self.policy = parts, policy
        self.enabled, self.life = True, Life()
        depth = len(parts.decoder.layers)
        self.shares = [float(share) for share in policy.shares(depth)]
        if len(self.shares) != depth:
            raise InvalidArgumentError(
                f"schedule has {len(self.shares)} shares, and model={type(parts.model).__name__} has {depth} blocks: "
                "give one share per block."
            )
        self._last: SkipCall | None = None
        self._local = threading.local()
        self._undo: list[Callable[[], None]] = []

    @property
    def every_policy(self) -> list[SkipPolicy]:
        return [self.policy]

    @property
    def call(self) -> SkipCall | LayerCall | None:
        return getattr(self._local, "call", None)

    def install(self) -> None:
        """Register the hooks; on any failure none stays."""
        parts, layers = self.parts, self.parts.decoder.layers
        try:
            for module in parts.entries:
                self._add(module.register_forward_pre_hook(Hook(self._enter_model), with_kwargs=True))
            self._add(parts.outer.register_forward_pre_hook(Hook(nothing)))  # by which `wrap` knows it
            self._add(parts.decoder.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
            self._add(parts.decoder.register_forward_hook(Hook(self._finish), always_call=True))
            last = max((i for i, share in enumerate(self.shares) if share > 0), default=0)
            for i, layer in enumerate(layers):
                before = Hook(lambda module, args, kwargs, i=i: self._before(i, args, kwargs))
                self._add(layer.register_forward_pre_hook(before, with_kwargs=True))
                self._add(layer.register_forward_hook(Hook(self._behind)))
                if self.policy.rows and i < last:
                    self._undo.append(listen(attention_of(layer), self._note))
        except BaseException:
            self.remove()
            raise

    def _add(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def remove(self) -> None:
        self.life.alive = False
        while self._undo:
            self._undo.pop()()

    def report(self) -> SkipReport:
        """What the last prompt did."""
        call = self._last
        trained, rows = self.policy.trained, self.policy.rows
        known = {}
        if call is not None:
            kept = [call.cuts[i].keep if i in call.cuts else call.real for i in range(len(call.skips))]
            known = {"lengths": call.lengths, "computed": call.computed, "kept": torch.stack(kept).cpu()}
        return SkipReport(
            policy=repr(self.policy),
            shape=self.parts.decoder_shape(),
            rows=rows,
            router=trained.parameters_count if rows else 0,
            **known,
        )

    # A call of the decoder

    def _enter_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._local.labels = by_name(module, args, kwargs).get("labels") is not None

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        self._local.call = None
        labels, self._local.labels = getattr(self._local, "labels", False), False
        given = by_name(module, args, kwargs)
        cache, state = given.get("past_key_values"), state_of(given.get("past_key_values"))
        if state is not None:
            self._local.call, self._local.state = self._continued(given, cache, state), state
            return (), given
        length = segment_of(given).shape[1]
        if not self.enabled or length == 1 or (not _static(cache) and physical_length(cache)):
            return None
        call = self._prompt(given, length)
        if not any(map(any, call.skips)):
            self._last = call
            return None
        self._check(given, labels)
        self._local.call = call
        return None

    def _prompt(self, given: dict[str, Any], length: int) -> SkipCall:
        x, mask = segment_of(given), given.get("attention_mask")
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if isinstance(mask, Tensor) and mask.shape == real.shape:
            real = mask.to(x.device).bool()
        lengths = [length] * len(x) if mask is None else real.sum(1).tolist()
        return SkipCall(
            real=real,
            place=real.long().cumsum(1) - 1,
            lengths=lengths,
            skips=[[skipped(share, n) for n in lengths] for share in self.shares],
            padded=min(lengths) < length,
            scores=torch.ones(real.shape, device=x.device) / real.sum(1, keepdim=True).clamp_min(1),
        )

    def _check(self, given: dict[str, Any], labels: bool) -> None:
        """That a call is one in which tokens can skip."""
        mask, cache, positions = (given.get(name) for name in ("attention_mask", "past_key_values", "position_ids"))
        kind, shape = type(self.parts.model).__name__, segment_of(given).shape[:2]
        if labels:
            raise UnsupportedPolicyError(
                f"labels are given, and which tokens policy {self.policy.name!r} skips depends on those behind them, "
                "so the loss would look ahead: read the prompt first, then the words to be predicted on its cache."
            )
        if _static(cache):
            raise UnsupportedModelError(
                "past_key_values is a static cache, whose blocks would hold different numbers of tokens: use the "
                "default cache."
            )
        if is_prepared(mask) or (mask is not None and (not isinstance(mask, Tensor) or mask.shape != shape)):
            raise UnsupportedModelError(
                f"model={kind} gives its decoder an attention_mask that is none of [batch, length], and tokens that "
                "skip blocks need one that says what is padding: use a model whose decoder makes its own masks."
            )
        packed = any(given.get(name) is not None for name in ("cu_seq_lens_q", "read_index"))
        if mask is None and cache is None and isinstance(positions, Tensor) and positions.ndim == 2:
            packed = packed or bool((positions.diff(dim=1) != 1).any())
        if packed:
            raise UnsupportedModelError(
                "position_ids start anew inside a row, so several prompts are packed into it, and what each may skip "
                "cannot be told: give one prompt per row, padded."
            )
        if self.parts.decoder.training and getattr(self.parts.decoder, "gradient_checkpointing", False):
            raise UnsupportedModelError(
                "gradient checkpointing computes blocks twice, the second time out of order: switch it off, or call "
                "model.eval()."
            )

    def _continued(self, given: dict[str, Any], cache: Any, state: CacheState) -> LayerCall:
        """A call on a cache with other tokens in every block: the decoder is told of those in the first one."""
        mask, past, x = given.get("attention_mask"), physical_length(cache), segment_of(given)
        if is_prepared(mask):
            raise UnsupportedModelError(
                "attention_mask is 4-D in a call that continues a cache whose blocks hold different tokens: give a 2-D "
                "mask over all tokens so far, or None."
            )
        if past < state.valid.shape[1]:
            raise StaleCacheError(
                f"past_key_values was cropped to {past} tokens, and a prompt of {state.valid.shape[1]} in it skipped "
                "blocks, which cannot be taken apart: crop no further than the prompt, or start with a new cache."
            )
        mask = state.physical_mask(mask, past, x.shape[1])
        if mask is not None and state.all_valid and bool(mask.all()):
            mask = None  # so that blocks need masks only where they cannot do without
        call = LayerCall(past=past, mask=mask, positions=None, batch=x.shape[0], length=x.shape[1])
        first = call.seen(x.shape[1], state.behind(0))
        given["attention_mask"] = None if first is None else first.to(x.device).long()
        return call

    def _finish(self, module: nn.Module, args: tuple, output: Any) -> None:
        call, self._local.call = self.call, None
        if not isinstance(call, SkipCall) or output is None:  # None: the forward raised, and says why itself
            return
        call.checks.close()
        missed = [i for i, one in enumerate(call.skips) if any(one) and i not in call.cuts]
        if missed:
            raise NotEngagedError(
                f"policy {self.policy.name!r} was to skip tokens in block {missed[0]} of {type(module).__name__}, and "
                "that block was not called: leave the blocks as they were when it was wrapped, or wrap it again."
            )
        values = output if isinstance(output, tuple) else output.values()
        cache = next((value for value in values if hasattr(value, "get_query_offset")), None)
        if cache is not None:
            self._remember(call, cache)
        self._last = call

    def _remember(self, call: SkipCall, cache: Any) -> None:
        """Tell the cache which tokens the slots of each block are about."""
        covered, held = call.real.shape[1], {}
        for i in range(len(call.skips)):
            cut = call.cuts.get(i)
            valid = call.real if cut is None else cut.valid
            held[i] = LayerState(valid, covered, not (call.padded if cut is None else cut.ragged))
        attach(cache, CacheState(self.life, call.real, 0, not call.padded, layers=held))

    # A block

    def _before(self, i: int, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        call = self.call
        if isinstance(call, LayerCall):
            old = self._local.state.behind(i)
            plain = call.mask is None and kwargs.get("attention_mask") is None and call.length == 1 and old.all_valid
            return None if plain else renew(self.parts, call, i, args, kwargs, old)
        if call is None:
            return None
        call.block, call.entered = i, None
        if not any(call.skips[i]):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        call.cuts[i] = cut = self._choose(call, i)
        call.entered = hidden
        short = LayerCall(past=0, mask=None, positions=None, batch=len(hidden), length=hidden.shape[1])
        short.sequence = Sequence(cut=cut, real=cut.valid, visual=cut.valid, text=cut.valid, place=cut.index)
        rows = cut.take(hidden, 1)
        args, kwargs = ((rows, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": rows})
        return renew(self.parts, short, i, args, kwargs, None)

    def _choose(self, call: SkipCall, i: int) -> Cut:
        tokens = SkipTokens(place=call.place, real=call.real, scores=call.scores, block=i, sparsity=self.shares[i])
        priority = self.policy.priority(tokens).float()
        good = (torch.isfinite(priority) | ~call.real).all()
        call.checks.require(
            good,
            InvalidFeaturesError(
                f"the priority of tokens in front of block {i} is NaN or Inf: check the predictor, and the dtype of "
                "the model (fp16 overflows; bf16 or fp32 do not)."
            ),
        )
        return keep_highest(
            priority, call.real, call.place, [n - k for n, k in zip(call.lengths, call.skips[i], strict=True)]
        )

    def _behind(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Those that were computed go back to their places."""
        call = self.call
        if not isinstance(call, SkipCall) or call.entered is None:
            return None
        rows = output[0] if isinstance(output, tuple) else output
        cut, hidden = call.cuts[call.block], call.entered
        call.entered = None
        if not isinstance(rows, Tensor) or rows.shape != (*cut.index.shape, hidden.shape[-1]):
            raise UnsupportedModelError(
                f"block {call.block} of {type(self.parts.decoder).__name__} answers no hidden states [batch, tokens, "
                "width], so tokens cannot skip it: use another model."
            )
        back = rows.gather(1, cut.moved.clamp_min(0)[..., None].expand_as(hidden))
        whole = torch.where(cut.keep[..., None], back, hidden)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def _note(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> None:
        """The attention of a block is handed its queries and keys."""
        call = self.call
        if not isinstance(call, SkipCall):
            return
        cut = None if call.entered is None else call.cuts[call.block]
        active = call.real if cut is None else cut.valid
        scores = received(query, key, mask, options, active, self.policy.rows)
        if cut is not None:
            scores = torch.where(cut.keep, scores.gather(1, cut.moved.clamp_min(0)), call.scores)
        call.scores = scores


def keep_highest(priority: Tensor, real: Tensor, place: Tensor, kept: list[int]) -> Cut:
    """The first token of each prompt, its last one, and those of the highest priority, `kept` in all.

    Args:
        priority: [B, L] float32; real, place: see `SkipCall`.
    """
    count = torch.tensor(kept)
    last = place == real.sum(1, keepdim=True) - 1
    priority = priority.masked_fill((place == 0) | last, torch.inf).masked_fill(~real, -torch.inf)
    order = priority.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(order.shape[1], device=order.device) < count.to(order.device)[:, None]
    return Cut.from_keep(torch.zeros_like(real).scatter(1, order, first), count)


def _static(cache: Any) -> bool:
    return bool(getattr(cache, "is_compileable", False))

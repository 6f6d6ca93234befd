"""Stage `layer`: tokens leave between two layers of the language model.

Hooks before its layers shorten the hidden states and everything that goes with them; taps on the attention of scoring
layers read the few rows that a policy asks for. The cache of each layer holds what that layer saw, and a call that
continues it gets masks and positions of that cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, InvalidFeaturesError, NotEngagedError, UnsupportedModelError
from ..policies.layer import LayerPolicy
from ..report import EventReport
from .cache import LayerState, physical_length, state_of
from .checks import finite
from .continued import remember_layers
from .deepstack import DeepStack, LayerDeepStack
from .entered import Seen, enter
from .gather import Cut
from .happened import Clock, Happened, History
from .hook import Hook
from .layer_call import LayerCall, Planned, Sequence, hidden_rows, laid_out_as
from .layer_inputs import frequencies, renew
from .layer_plan import attention_of, planned
from .parts import Parts
from .positions import NO_COMPACT
from .rows import LayerAttention, rows_of
from .tap import listen
from .units import UnitState, kept_of
from .visual import Call
from .within import choose, counts

STATIC = (
    "past_key_values is a static cache, and its layers would hold prompts of different length or padding, or get new "
    "images in a later turn: use the default cache, or one prompt at a time."
)
NOT_FINITE = (
    "{what} in front of layer {i} are NaN or Inf at visual tokens: check pixel_values and the dtype of the model (fp16 "
    "overflows; bf16 or fp32 do not)."
)


class LayerStage:
    """The hooks on the layers of one wrapped model.

    Args:
        parts: of the model.
        policies: in order.
        positions: "original" or "compact" for all of them, None for each policy's own.
        clock: seconds by now, given a tensor of the device, or None where nothing is timed.

    Raises:
        UnsupportedModelError: a decoder whose layers cannot be told apart, or share keys across a drop.
        UnsupportedPolicyError: a scoring layer without softmax attention.
    """

    def __init__(
        self,
        *,
        parts: Parts,
        policies: list[LayerPolicy],
        positions: str | None,
        clock: Clock,
    ):
        self.parts, self.policies, self.clock = parts, policies, clock
        self.planned: dict[int, list[Planned]] = planned(parts, policies, positions)
        self._local = threading.local()
        self._undo: list[Callable[[], None]] = []

    @property
    def events(self) -> list[Planned]:
        """All, in the order they happen."""
        return [one for drop in sorted(self.planned) for one in self.planned[drop]]

    @property
    def call(self) -> LayerCall | None:
        return getattr(self._local, "call", None)

    def install(self) -> None:
        if not self.planned:
            return
        layers = self.parts.decoder.layers
        self._undo.append(layers[0].register_forward_pre_hook(Hook(self._starts), with_kwargs=True).remove)
        for i in range(min(self.planned), len(layers)):
            before = Hook(lambda module, args, kwargs, i=i: self.before_layer(i, module, args, kwargs))
            self._undo.append(layers[i].register_forward_pre_hook(before, with_kwargs=True).remove)
        for i in sorted({one.score for one in self.events if one.score is not None}):
            self._undo.append(listen(attention_of(layers[i]), lambda *given, i=i: self._note(i, *given)))
        self._undo.append(LayerDeepStack.install(self.parts.decoder, self._deepstack))

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()

    # One call of the decoder

    def start(self, kwargs: dict[str, Any], mask: Tensor | None) -> None:
        """Any call: one without visual tokens may continue a cache that was pruned.

        Args:
            kwargs: of the decoder.
            mask: [B, past + L] over slots of the first layer, None where all are valid.
        """
        if not self.planned:
            return
        x, cache, positions = kwargs.get("inputs_embeds"), kwargs.get("past_key_values"), kwargs.get("position_ids")
        x = kwargs["input_ids"] if x is None else x
        static = bool(getattr(cache, "is_compileable", False))
        past = 0 if static and x.shape[1] == 1 else physical_length(cache)  # a step must not read it off the device
        if positions is None and any(one.compact for one in self.events):
            first = 0 if cache is None else int(cache.get_seq_length())
            positions = (torch.arange(x.shape[1], device=x.device) + first)[None]
        positions = None if positions is None or positions.ndim != 2 else positions
        self._local.call = LayerCall(
            past=past, mask=mask, positions=positions, batch=x.shape[0], length=x.shape[1], static=static
        )

    def show(
        self,
        kwargs: dict[str, Any],
        *,
        units: list[UnitState],
        real: Tensor,
        place: Tensor,
        visual: Tensor,
        outer: Call,
        lengths: Tensor,
        image_sizes: list[tuple[int, int]] | None,
    ) -> None:
        """A call with visual tokens, which `start` knows of.

        Args:
            kwargs: of the decoder.
            units: with slots in its input.
            real: [B, L] bool, False at padding.
            place: [B, L] long, where in the prompt each position stood before anything was removed.
            visual: [B, L] bool, all that is no text: tokens of units, and separators.
            outer: of the outer module.
            lengths: [B] long on the CPU, positions of every sample without left padding.
            image_sizes: (width, height) of the pictures of the batch in order, or None.
        """
        if not self.planned:
            return
        call, left = self.call, [len(unit.slots) for unit in units]
        for one in self.events:
            asked = counts(one.policy, one.event, units, left)
            if asked != left or one.policy.everywhere or (one.event.forget and call.pending):
                call.pending.append(one)
            left = asked
        if not call.pending:
            return
        call.outer, call.units, call.image_sizes = outer, units, image_sizes
        call.lengths = lengths
        call.others = lengths - kept_of(units, len(lengths))
        call.history = History(start=[len(unit.slots) for unit in units])
        inside = torch.zeros_like(real)
        for unit in units:
            inside[unit.sample, unit.slots] = True
        text = real & (visual.long().flip(1).cumsum(1).flip(1) == 0)
        call.sequence = Sequence(real=real, visual=inside, text=text, place=place)
        x = kwargs["inputs_embeds"]
        for one in call.pending:
            if one.event.rows == "raters" and one.event.score is not None and id(one.policy) not in call.raters:
                with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                    call.raters[id(one.policy)] = one.policy.raters(x, inside, text)
        padded = not outer.clean or bool((lengths < x.shape[1]).any())
        if call.static and (call.past or padded):
            raise UnsupportedModelError(STATIC)
        deepstack = DeepStack.of(kwargs, only=self.parts.adapter.deepstack_only)
        if deepstack is not None:
            LayerDeepStack.check(self.parts.decoder, deepstack, call.pending[0].event.drop)
            call.deepstack = LayerDeepStack(deepstack, int(lengths.sum()))

    def finish(self) -> Cut | None:
        """The decoder is through: what left of its input, None where nothing did.

        Raises:
            NotEngagedError: a layer that was to drop was not called.
        """
        call = self.call
        if call is None or call.sequence is None:
            return None
        if call.pending:
            one = call.pending[0]
            raise NotEngagedError(
                f"policy {one.policy.name!r} was to remove visual tokens at layer {one.event.drop} of "
                f"{type(self.parts.decoder).__name__}, and that layer was not called: leave the decoder's layers as "
                "they were when it was wrapped, or wrap it again."
            )
        call.history.mark(self.clock(call.sequence.real))
        return call.cut

    def forget(self) -> None:
        """The call is over, whether it went well or not."""
        self._local.call = None

    def remember(self, cache: Any) -> None:
        """Tell the cache, which knows of this call already, what its layers hold."""
        remember_layers(cache, self.call, sorted(self.planned))

    def reports(self, history: History) -> list[EventReport]:
        """What happened in a call. Reads the device."""
        return history.reports(len(self.parts.decoder.layers))

    # Hooks

    def _starts(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """The first layer is entered: what the decoder does before is no layer's time."""
        call = self.call
        if call is not None and call.pending:
            call.history.mark(self.clock(args[0] if args else kwargs["hidden_states"]))

    def before_layer(self, i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        call = self.call
        if call is None:
            return None
        call.layer = i
        for one in self.planned.get(i, ()):
            if one in call.pending:
                args, kwargs = self._happen(call, one, i, module, args, kwargs)
        return self._renewed(call, i, args, kwargs)

    def _renewed(self, call: LayerCall, i: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        state = state_of(kwargs.get("past_key_values"))
        old = None if state is None else state.behind(i)
        if call.cut is None and (old is None or self._steps_plainly(call, old, kwargs)):
            return args, kwargs
        return renew(self.parts, call, i, args, kwargs, old)

    def _steps_plainly(self, call: LayerCall, old: LayerState, kwargs: dict[str, Any]) -> bool:
        """One more token on a cache without padding and with positions as in the first layer: nothing is other."""
        seen = call.mask is None and kwargs.get("attention_mask") is None
        return seen and call.length == 1 and old.all_valid and old.shift is None

    def _deepstack(self) -> tuple[Tensor, Tensor] | None:
        call = self.call
        if call is None or call.cut is None or call.deepstack is None:
            return None
        return call.deepstack.shorten(call.layer, call.cut)

    def _note(self, i: int, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> None:
        """The attention of a scoring layer is handed its queries and keys."""
        call = self.call
        if call is None or call.sequence is None:
            return
        entered = getattr(self._local, "entered", None)
        for one in call.pending:
            if one.score == i and (one is entered if entered else not one.enters):
                started = self.clock(query)
                call.scores[one] = self._score(call, one, query, key, mask, options)
                if started is not None and not entered:  # else it falls into the time of the event itself
                    call.scored[one] = 1e3 * (self.clock(query) - started)
        if entered:
            raise Seen

    # One event

    @torch.no_grad()
    def _score(
        self, call: LayerCall, one: Planned, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]
    ) -> Tensor:
        sequence, device = call.sequence, query.device
        rows, row_mask = rows_of(call.rows(one).to(device), call.most_rows(one))
        first = key.shape[2] - query.shape[2]
        if first and call.static:  # a static cache hands over all its slots
            first = call.past
        attention = LayerAttention(
            rows=rows,
            row_mask=row_mask,
            visual=sequence.visual.to(device),
            text=sequence.rows("text").to(device),
            place=sequence.place.to(device),
            heads=query.shape[1],
            frequencies=frequencies(self.parts, one.score),
            query=query,
            keys=key,
            mask=mask,
            options=options,
            first=first,
        )
        with torch.autocast(device.type, enabled=False):
            return one.policy.score(attention, one.event)

    def _happen(
        self, call: LayerCall, one: Planned, i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Tokens leave in front of layer i: its arguments with shorter hidden states."""
        hidden, history = args[0] if args else kwargs["hidden_states"], call.history
        history.mark(started := self.clock(hidden))
        if one.enters:
            self._enter(one, module, *self._renewed(call, i, args, kwargs))
        rows, scores = hidden_rows(hidden, call.batch), self._scores(call, one, hidden.device)
        visual = call.sequence.visual.to(hidden.device)
        for what, values in (("hidden states", rows), ("scores", scores)):
            if values is not None:
                good = finite(values.flatten(2)) if values.ndim > 2 else torch.isfinite(values)
                error = InvalidFeaturesError(NOT_FINITE.format(what=what, i=i))
                call.outer.checks.require((good | ~visual).all(), error)
        with torch.autocast(hidden.device.type, enabled=False):
            rows, kept = choose(call, one, rows, scores, depth=len(self.parts.decoder.layers))
        rows = self._shortened(call, one, i, rows, kwargs.get("past_key_values"))
        call.pending.remove(one)
        happened = Happened(one.policy.name, one.event, one.score, kept, call.sequence.real.sum(1))
        history.mark(ended := self.clock(hidden))
        if started is not None:
            happened.scored = call.scored.get(one, 0.0)
            happened.spent = happened.scored + 1e3 * (ended - started)
        history.events.append(happened)
        hidden = laid_out_as(hidden, rows, call.batch)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    @torch.no_grad()
    def _enter(self, one: Planned, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._local.entered = one
        try:
            enter(module, args, kwargs)
        finally:
            self._local.entered = None

    def _scores(self, call: LayerCall, one: Planned, device: torch.device) -> Tensor | None:
        """[B, L] of an event, once its scoring layer has run."""
        if one.event.score is None:
            return None
        if one not in call.scores:
            raise NotEngagedError(
                f"policy {one.policy.name!r} was to score visual tokens by the attention of layer {one.score} of "
                f"{type(self.parts.decoder).__name__}, which does not go through transformers' attention interface: "
                "use a policy in front of the language model."
            )
        return call.scores.pop(one).to(device)

    def _shortened(self, call: LayerCall, one: Planned, i: int, rows: Tensor, cache: Any) -> Tensor:
        """Hidden states [B, L', ...] of what the units have left."""
        sequence = call.sequence
        keep = (sequence.real | (sequence.real.cumsum(1) > 0)) & ~sequence.visual  # left padding can always go
        for unit in call.units:
            keep[unit.sample, unit.slots] = True
        lengths = keep.sum(1).cpu() if call.outer.shared else call.others + kept_of(call.units, call.batch)
        if torch.equal(lengths, call.lengths):
            if one.event.forget and call.cut is not None:
                call.drops[i], call.forgets = sequence, i
            return rows
        step = Cut.from_keep(keep, lengths)
        if call.static and step.ragged:
            raise UnsupportedModelError(STATIC)
        moved = step.moved
        for unit in call.units:
            unit.slots = moved[unit.sample, unit.slots]
        call.lengths = lengths
        call.scores = {other: step.take(values, 1) for other, values in call.scores.items()}
        call.sequence, call.renewed = sequence.after(step), {}
        if one.compact:
            if call.positions is None:
                raise InvalidArgumentError(NO_COMPACT.format(family=self.parts.adapter.model_type))
            state = state_of(cache)
            old = None if state is None else state.behind(i)
            call.sequence = call.sequence.renumbered(call.positions, None if old is None else old.shift)
        call.drops[i] = call.sequence
        call.forgets = i if one.event.forget else call.forgets
        return step.take(rows, 1)

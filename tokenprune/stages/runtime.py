"""The hooks of a wrapped vision-language model, and stage `projector`: tokens leave in front of the language model.

Hooks, none of which knows the family:

- on the model as it is called: note whether logits must have the prompt's length (`labels`);
- before the outer multimodal module: note which positions are visual; translate masks of continued caches;
- before the decoder: ask the policies, and shorten everything that has a sequence dimension in one gather;
- after the decoder and the outer module: remember the cut with a cache the decoder made; restore the length where it
  is asked for; prove that tokens went.

`FeatureWatch` notes what the tower made; `TowerStage` has the hooks inside the tower, `LayerStage` those inside the
decoder.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Features
from ..errors import InputError, InvalidArgumentError, NotEngagedError, UnsupportedModelError
from ..ops import sent
from ..policies import Policy, ProjectorPolicy
from ..policies.base import Need
from ..policies.layer import LayerPolicy
from ..policies.vision import VisionPolicy
from ..report import Report, TowerReport
from .cache import Life, physical_length, state_of
from .continued import continue_cache, remember
from .decoder import LayerStage
from .deepstack import DeepStack
from .features import FeatureWatch, known_features
from .gather import Cut, shorten_inputs
from .hook import Hook, by_name
from .outcome import Options, Outcome
from .parts import Parts
from .positions import NO_COMPACT, compact, one_sequence
from .projection import Projector
from .prompt import PromptReader
from .select import Surroundings, apply_policies, budgets_remove
from .separators import drop_empty
from .tower_run import Run
from .tower_stage import CARRIER, TowerStage, runs_of
from .units import UnitState, kept_of, make_units, places_of
from .visual import Call, as_videos, find_items, has_placeholder, keys_of, modalities, placeholder_masks


class Stages:
    """The hooks of one wrapped model.

    Args:
        parts: of the model.
        vision_policies: of the stage inside the tower, at most one.
        policies: of the stage in front of the decoder, applied in order.
        layer_policies: of the stage inside.
        options: how.
    """

    def __init__(
        self,
        *,
        parts: Parts,
        vision_policies: list[VisionPolicy],
        policies: list[ProjectorPolicy],
        layer_policies: list[LayerPolicy],
        options: Options,
    ):
        self.parts, self.policies, self.options = parts, policies, options
        self.layers = LayerStage(parts=parts, policies=layer_policies, positions=options.positions, clock=self._clock)
        self.image_sizes: list[tuple[int, int]] | None = None
        self.prompts = PromptReader(parts.model, options.tokenizer)
        self.projector = Projector(parts)
        self.enabled = True
        self.life = Life()
        self.tower: TowerStage | None = None
        self.watch = FeatureWatch(
            parts,
            needs=lambda: self.needs,
            prunes=lambda: self.enabled and not self.keeps_all,
            seen=self.after_features,
        )
        if vision_policies:
            self.tower = TowerStage(parts, vision_policies[0], self.watch, active=lambda: self.enabled)
        self._last: Outcome | None = None
        self._local = threading.local()  # what one forward knows; forwards may run in several threads
        self._hooks: list[Any] = []

    # Installing

    def install(self) -> None:
        """Register the hooks; on any failure none stays."""
        parts, add = self.parts, self._hooks.append
        try:
            for module in parts.entries:
                add(module.register_forward_pre_hook(Hook(self.before_model), with_kwargs=True))
            add(parts.outer.register_forward_pre_hook(Hook(self.before_outer), with_kwargs=True))
            add(parts.outer.register_forward_hook(Hook(self.after_outer), always_call=True))
            add(parts.decoder.register_forward_pre_hook(Hook(self.before_decoder), with_kwargs=True))
            add(parts.decoder.register_forward_hook(Hook(self.after_decoder)))
            self.watch.install()
            if self.tower is not None:
                self.tower.install()
            self.layers.install()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        self.life.alive = False
        if self.tower is not None:
            self.tower.remove()
        self.watch.remove()
        self.layers.remove()
        while self._hooks:
            self._hooks.pop().remove()

    def report(self) -> Report:
        """What the last forward with visual tokens did. Reads the device only here."""
        known = {}
        if self._last is not None:
            known = {
                "units": [unit.report() for unit in self._last.units],
                "lengths": [(int(before), int(after)) for before, after in self._last.lengths],
                "towers": self._towers(self._last.towers),
                "events": self.layers.reports(self._last.history),
                "selection_ms": self._last.elapsed,
                "shape": self.parts.decoder_shape(),
            }
        text = " + ".join(f"{policy!r}" for policy in self.every_policy)
        return Report(policy=text, stage=self.name, positions=self._positions(), **known)

    def _towers(self, runs: list[Run]) -> list[TowerReport]:
        return [report for run in runs for report in self.tower.reports(run)]

    def _positions(self) -> str:
        compact = {self.compact} if self.policies or self.tower is not None else set()
        compact |= {one.compact for one in self.layers.events}
        return " + ".join(word for word, there in (("original", False), ("compact", True)) if there in compact)

    @property
    def name(self) -> str:
        """Of the stages it has."""
        return " + ".join(dict.fromkeys(policy.stage for policy in self.every_policy))

    @property
    def every_policy(self) -> list[Policy]:
        inside = [] if self.tower is None else [self.tower.policy]
        return [*inside, *self.policies, *self.layers.policies]

    @property
    def call(self) -> Call | None:
        return getattr(self._local, "call", None)

    @property
    def needs(self) -> frozenset[Need]:
        inside = frozenset() if self.tower is None else frozenset({CARRIER})
        return inside.union(*(policy.needs for policy in self.policies))

    @property
    def keeps_all(self) -> bool:
        """By share; a count of 1 keeps one token."""
        return all(
            isinstance(policy.keep, float) and policy.keep == 1.0 and not getattr(policy, "everywhere", False)
            for policy in self.every_policy
        )

    @property
    def compact(self) -> bool:
        """What is left in front of the decoder is renumbered. Positions of several axes stay what they are."""
        if self.options.positions is not None or self.parts.several_axes:
            return self.options.positions == "compact"
        return any(policy.positions == "compact" for policy in self.policies)

    # Hooks

    def after_features(self, features: Features) -> None:
        if self.call is not None:  # inside a forward; outside of one, generate hands them to it
            self.call.features.append(features)

    def before_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = by_name(module, args, kwargs)
        self._local.entered = {"full": given.get("labels") is not None, "encoded": known_features(given)}

    def before_outer(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        given = by_name(module, args, kwargs)
        present = modalities(given) if self.enabled else []
        continue_cache(module, given, fills=bool(present) and not self.keeps_all)
        self._local.call = None
        mask = given.get("attention_mask")
        self._local.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        entered, self._local.entered = getattr(self._local, "entered", {}), {}
        if self.enabled and "read_index" in given and has_placeholder(self.parts, given):
            raise UnsupportedModelError(
                "continuous batching (generate_batch, cache_implementation='paged') packs prompts into one row and "
                "hands no images to the model, pruned or not: use generate() without it for prompts with images."
            )
        if present:
            ids, mask = given.get("input_ids"), self._local.mask
            ids = None if ids is None else ids.cpu()
            call = Call(
                kwargs=given,
                masks=placeholder_masks(self.parts, {**given, "input_ids": ids}, present),
                mask=mask,
                seen=None if mask is None else mask.cpu().bool(),
                ids=ids,
                **entered,
            )
            if not call.masks or not call.visual.any():
                raise InputError(
                    f"input_ids has no placeholder for the {' or '.join(present)} given: put the processor's image "
                    "token into the prompt (apply_chat_template does)."
                )
            self._local.call = call
        elif self.enabled and given.get("inputs_embeds") is not None and given["inputs_embeds"].shape[1] > 1:
            warnings.warn(
                "inputs_embeds came without pixel_values, so visual tokens merged into it beforehand cannot be told "
                "from text and nothing is pruned: pass the text's embeddings together with pixel_values.",
                stacklevel=2,
            )
        return (), given

    def before_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        call, x = self.call, kwargs.get("inputs_embeds")
        if call is None or x is None or call.visual.shape != x.shape[:2]:
            self.layers.start(kwargs, getattr(self._local, "mask", None))
            return None
        units = self._units(call, x.device)
        call.own = places_of(units, call.visual)
        call.shared = int(call.own.sum()) < sum(len(unit.places) for unit in units)
        shorter = self.tower is not None and self.tower.narrow(units, call.items, restore=self.options.restore)
        call.wanted = budgets_remove(self.policies, units) or shorter
        real, call.clean = sent(call.real, x.device), call.is_clean(kwargs.get("past_key_values"))
        elapsed, after = None, call.real.sum(1)
        if call.wanted:
            kwargs, elapsed, after = self._shorten(call, units, real, kwargs)
        for unit in units:
            unit.inside = {}  # nothing that holds pixels or features alive
        towers = [] if self.tower is None else runs_of(call.items)
        call.outcome = Outcome(units, torch.stack([call.real.sum(1), after], 1), elapsed, towers)
        self._begin_layers(call, units, real, kwargs)
        return (args, kwargs) if call.wanted else None

    def _shorten(
        self, call: Call, units: list[UnitState], real: Tensor, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], float | None, Tensor]:
        """The decoder's arguments for what the policies in front of it leave, their time in ms, and [B] tokens left."""
        x, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
        batch, length = x.shape[:2]
        prompt = self.prompts.read(call, x, self.needs)
        deepstack = DeepStack.of(kwargs, only=self.parts.adapter.deepstack_only)
        started = self._clock(x)
        around = Surroundings(prompt=prompt, projector=self.projector, checks=call.checks, deepstack=deepstack)
        with torch.autocast(x.device.type, enabled=False):
            x = apply_policies(self.policies, units, x, around)
        elapsed = None if started is None else 1e3 * (self._clock(x) - started)
        cut, visual = self._cut(call, units, x.device)
        call.cut = cut
        past = physical_length(cache)
        positions = kwargs.get("position_ids")
        if positions is None:
            logical = 0 if cache is None else int(cache.get_seq_length())
            positions = (torch.arange(length, device=x.device) + logical)[None]
        given = {**kwargs, "inputs_embeds": x}
        about = {"past": past, "attention": self.parts.attention, "plain": call.plain}
        short = shorten_inputs(given, cut, position_ids=positions, **about)
        if deepstack is not None:
            short[deepstack.name] = deepstack.shorten(cut, visual, kwargs)
        shift = None
        if self.compact:
            if positions.ndim == 3:
                raise InvalidArgumentError(NO_COMPACT.format(family=self.parts.adapter.model_type))
            short["position_ids"], shift = compact(positions.expand(batch, -1).to(x.device), cut, real)
            if (state := state_of(cache)) is not None and state.shift is not None:
                shift = shift + state.shift
        if "flash" in self.parts.attention and batch == 1:
            short.update(one_sequence(short["inputs_embeds"], past))
        call.note = self._note(call, cut=cut, real=real, past=past, shift=shift)
        if cache is not None:
            call.note(cache)
        return short, elapsed, cut.lengths - (call.stays & ~call.real).sum(1)

    def _note(self, call: Call, **facts: Any) -> Callable[[Any], None]:
        """Tells a cache of this call, without holding on to it."""
        return partial(remember, life=self.life, mask=call.mask, clean=call.clean, **facts)

    def _cut(self, call: Call, units: list[UnitState], device: torch.device) -> tuple[Cut, int]:
        """What stays of the segment (the tokens left of units, and all others but left padding), and how many visual
        positions are among that."""
        others = call.stays & ~call.own
        sample = torch.tensor([unit.sample for unit in units for _ in range(len(unit.slots))], dtype=torch.long)
        lengths = others.sum(1) + kept_of(units, len(others))
        slots = torch.cat([unit.slots for unit in units])
        keep = sent(others, device).index_put((sent(sample, device), slots), torch.ones_like(slots, dtype=torch.bool))
        visual = int((others & call.visual).sum()) + len(slots)
        if self.options.drop_empty_rows or call.shared:
            host = keep.cpu()  # which lines are empty, and what was kept twice, only the device knows
            if self.options.drop_empty_rows:
                drop_empty(call.items, host)
            keep, lengths, visual = sent(host, device), host.sum(1), int((host & call.visual).sum())
        return Cut.from_keep(keep, lengths), visual

    def _begin_layers(self, call: Call, units: list[UnitState], real: Tensor, kwargs: dict[str, Any]) -> None:
        """Show the stage inside the decoder what is left in front of it."""
        if not self.layers.planned:
            return
        cut, mask, cache = call.cut, call.mask, kwargs.get("past_key_values")
        visual, place = sent(call.visual, real.device), real.long().cumsum(1) - 1
        if cut is not None:
            moved = cut.moved
            for unit in units:
                unit.slots = moved[unit.sample, unit.slots]
            real, visual, place = cut.take(real, 1) & cut.valid, cut.take(visual, 1) & cut.valid, cut.take(place, 1)
            if mask is not None:
                mask = cut.shorten_mask(mask)
            elif cut.ragged:
                mask = torch.cat([real.new_ones(len(real), physical_length(cache)), real], 1)
        else:  # should something leave inside, the cache has to know of this call
            shift = None if (state := state_of(cache)) is None else state.shift
            call.note = self._note(call, cut=Cut.whole(real), real=real, past=physical_length(cache), shift=shift)
        self.layers.start(kwargs, mask)
        lengths = call.stays.sum(1) if cut is None else cut.lengths
        about = {"outer": call, "lengths": lengths, "image_sizes": self.image_sizes}
        self.layers.show(kwargs, units=units, real=real, place=place, visual=visual, **about)

    def after_decoder(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """The decoder may have made the cache itself."""
        call = self.call
        if call is None:
            return None
        values = output if isinstance(output, tuple) else output.values()
        cache = next((value for value in values if hasattr(value, "get_query_offset")), None)
        inside = self.layers.finish()
        if inside is not None:
            call.outcome.history = self.layers.call.history
        self._last = call.outcome or self._last
        if cache is not None:
            if state_of(cache) is None if call.cut is not None else inside is not None:
                call.note(cache)
            if inside is not None:
                self.layers.remember(cache)
        if inside is not None:
            call.cut = inside if call.cut is None else call.cut.then(inside)
        if call.cut is None or (self.options.logits == "kept" and not call.full):
            return None
        if isinstance(output, tuple):
            return call.cut.restore(output[0]), *output[1:]
        output.last_hidden_state = call.cut.restore(output.last_hidden_state)
        return output

    def after_outer(self, module: nn.Module, args: tuple, output: Any) -> None:
        call, self._local.call, self._local.mask = self.call, None, None
        self.layers.forget()
        if call is not None:
            call.checks.close()
        if output is None:  # the forward raised, and says why itself
            return
        if call is not None and call.cut is None and (call.wanted or (not call.engaged and not self.keeps_all)):
            raise NotEngagedError(
                f"{type(self.parts.model).__name__} had {int(call.visual.sum())} visual tokens and the budget asks to "
                f"remove some, but none was removed at stage {self.name!r}: the decoder was not called with the "
                "inputs_embeds of this forward; report it as a bug with the versions of transformers and tokenprune."
            )

    # Parts of the above

    def _units(self, call: Call, device: torch.device) -> list[UnitState]:
        call.items = find_items(call, self.parts)
        if self.options.images_are_frames:
            call.items = as_videos(call.items)
        call.engaged = bool(call.items)
        found = {item.modality for item in call.items}
        if call.engaged and not any(policy.kinds & found for policy in self.every_policy):
            warnings.warn(
                f"policy {self.every_policy[0].name!r} prunes videos, and this prompt has images only, which stay "
                "whole: if they are the frames of a video, say wrap(..., images_are_frames=True).",
                stacklevel=2,
            )
        keys = keys_of(call, call.items)
        adapter, config = self.parts.adapter, self.parts.config
        per = next((policy.per for policy in (*self.policies, *self.layers.policies)), "image")
        return make_units(call.items, keys, adapter=adapter, config=config, per=per, device=device)

    def _clock(self, x: Tensor) -> float | None:
        if not self.options.timing:
            return None
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter()

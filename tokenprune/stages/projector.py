"""Stage `projector`: tokens leave after the projector and before the language model.

Hooks, none of which knows the family:

- on the model as it is called: note whether logits must have the prompt's length (`labels`);
- before the outer multimodal module: note which positions are visual; translate masks of continued caches;
- before the decoder: ask the policies, and shorten everything that has a sequence dimension in one gather;
- after the decoder and the outer module: remember the cut with a cache the decoder made; restore the length where it
  is asked for; prove that tokens went.

`FeatureWatch` notes what the tower made.
"""

from __future__ import annotations

import inspect
import threading
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Features
from ..errors import InputError, InvalidArgumentError, NotEngagedError, UnsupportedModelError
from ..policies import ProjectorPolicy
from ..policies.base import Need
from ..report import Report
from .cache import Life, physical_length, state_of
from .continued import continue_cache, remember
from .deepstack import DeepStack
from .features import FeatureWatch, known_features
from .gather import Cut, shorten_inputs
from .hook import Hook
from .parts import Parts
from .positions import NO_COMPACT, compact, one_sequence
from .projection import Projector
from .prompt import PromptReader
from .select import Surroundings, apply_policies, budgets_remove
from .separators import drop_empty
from .units import UnitState, make_units
from .visual import Call, find_items, has_placeholder, keys_of, modalities, placeholder_masks


@dataclass
class Outcome:
    """What `report` is made from: nothing that would keep a cache or pixels alive.

    Attributes:
        units: after the policies.
        lengths: [B, 2], tokens before and after, padding left out.
        elapsed: milliseconds of the selection, None if not asked for.
    """

    units: list[UnitState]
    lengths: Tensor
    elapsed: float | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is pruned, whatever the policy.

    Attributes:
        positions: "original" (kept tokens keep their ids) or "compact" (renumbered without gaps).
        logits: "kept" (one row per token left) or "full" (the prompt's length).
        drop_empty_rows: newline and row-break tokens of lines without any kept token leave too.
        tokenizer: turns the prompt into the instruction's text, for policies that need it.
        timing: synchronise the device around the selection and report its time.
    """

    positions: str = "original"
    logits: str = "kept"
    drop_empty_rows: bool = False
    tokenizer: Any = None
    timing: bool = False


class ProjectorStage:
    """The hooks of one wrapped model.

    Args:
        parts: of the model.
        policies: applied in order.
        options: how.
    """

    name = "projector"

    def __init__(self, *, parts: Parts, policies: list[ProjectorPolicy], options: Options):
        self.parts, self.policies, self.options = parts, policies, options
        self.prompts = PromptReader(parts.model, options.tokenizer)
        self.projector = Projector(parts)
        self.enabled = True
        self.life = Life()
        self.watch = FeatureWatch(
            parts,
            needs=lambda: self.needs,
            prunes=lambda: self.enabled and not self.keeps_all,
            seen=self.after_features,
        )
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
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        self.life.alive = False
        self.watch.remove()
        while self._hooks:
            self._hooks.pop().remove()

    def report(self) -> Report:
        """What the last forward with visual tokens did. Reads the device only here."""
        known = {}
        if self._last is not None:
            known = {
                "units": [unit.report() for unit in self._last.units],
                "lengths": [(int(before), int(after)) for before, after in self._last.lengths],
                "selection_ms": self._last.elapsed,
                "shape": self.parts.decoder_shape(),
            }
        text = " + ".join(f"{policy!r}" for policy in self.policies)
        return Report(policy=text, stage=self.name, positions=self.options.positions, **known)

    @property
    def call(self) -> Call | None:
        return getattr(self._local, "call", None)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset().union(*(policy.needs for policy in self.policies))

    @property
    def keeps_all(self) -> bool:
        """By share; a count of 1 keeps one token."""
        return all(isinstance(policy.keep, float) and policy.keep == 1.0 for policy in self.policies)

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
        entered, self._local.entered = getattr(self._local, "entered", {}), {}
        if self.enabled and "read_index" in given and has_placeholder(self.parts, given):
            raise UnsupportedModelError(
                "continuous batching (generate_batch, cache_implementation='paged') packs prompts into one row and "
                "hands no images to the model, pruned or not: use generate() without it for prompts with images."
            )
        if present:
            mask = given.get("attention_mask")
            call = Call(
                kwargs=given,
                masks=placeholder_masks(self.parts, given, present),
                mask=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
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
            return None
        attention = str(module.config._attn_implementation)
        units = self._units(call, x.device)
        call.wanted = budgets_remove(self.policies, units)
        batch, length = x.shape[:2]
        mask = call.segment_mask
        real = torch.ones(batch, length, device=x.device).bool() if mask is None else mask.to(x.device).bool()
        if not call.wanted:
            self._last = Outcome(_forget(units), real.sum(1)[:, None].expand(-1, 2), None)
            return None
        keep = real | (real.cumsum(1) > 0)  # left padding can always go
        for unit in units:
            keep[unit.sample, unit.slots] = False
        prompt = self.prompts.read(call, x, real, self.needs)
        deepstack = DeepStack.of(kwargs, only=self.parts.adapter.deepstack_only)
        started = self._clock(x)
        around = Surroundings(prompt=prompt, projector=self.projector, deepstack=deepstack)
        with torch.autocast(x.device.type, enabled=False):
            x = apply_policies(self.policies, units, x, around)
        elapsed = None if started is None else 1e3 * (self._clock(x) - started)
        for unit in units:
            keep[unit.sample, unit.slots] = True
        if self.options.drop_empty_rows:
            drop_empty(call.items, keep)

        call.cut = cut = Cut.from_keep(keep)
        cache = kwargs.get("past_key_values")
        past = physical_length(cache)
        positions = kwargs.get("position_ids")
        if positions is None:
            logical = 0 if cache is None else int(cache.get_seq_length())
            positions = (torch.arange(length, device=x.device) + logical)[None]
        given = {**kwargs, "inputs_embeds": x}
        short = shorten_inputs(given, cut, position_ids=positions, past=past, attention=attention)
        if deepstack is not None:
            short[deepstack.name] = deepstack.shorten(keep, kwargs)
        shift = None
        if self.options.positions == "compact":
            if positions.ndim == 3:
                raise InvalidArgumentError(NO_COMPACT.format(family=self.parts.adapter.model_type))
            short["position_ids"], shift = compact(positions.expand(batch, -1).to(x.device), cut, real)
            if (state := state_of(cache)) is not None and state.shift is not None:
                shift = shift + state.shift
        if "flash" in attention and batch == 1:
            short.update(one_sequence(short["inputs_embeds"], past))
        facts = {"life": self.life, "cut": cut, "real": real, "mask": call.mask, "past": past, "shift": shift}
        call.note = lambda cache: remember(cache, **facts)
        if cache is not None:
            call.note(cache)
        after = (keep & real).sum(1)
        self._last = Outcome(_forget(units), torch.stack([real.sum(1), after], 1), elapsed)
        return args, short

    def after_decoder(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """The decoder may have made the cache itself."""
        call = self.call
        if call is None or call.cut is None:
            return None
        values = output if isinstance(output, tuple) else output.values()
        cache = next((value for value in values if hasattr(value, "get_query_offset")), None)
        if cache is not None and state_of(cache) is None:
            call.note(cache)
        if self.options.logits == "kept" and not call.full:
            return None
        if isinstance(output, tuple):
            return call.cut.restore(output[0]), *output[1:]
        output.last_hidden_state = call.cut.restore(output.last_hidden_state)
        return output

    def after_outer(self, module: nn.Module, args: tuple, output: Any) -> None:
        call, self._local.call = self.call, None
        if output is None:  # the forward raised, and says why itself
            return
        if call is not None and call.cut is None and (call.wanted or (not call.seen and not self.keeps_all)):
            raise NotEngagedError(
                f"{type(self.parts.model).__name__} had {int(call.visual.sum())} visual tokens and the budget asks to "
                f"remove some, but none was removed at stage {self.name!r}: the decoder was not called with the "
                "inputs_embeds of this forward; report it as a bug with the versions of transformers and tokenprune."
            )

    # Parts of the above

    def _units(self, call: Call, device: torch.device) -> list[UnitState]:
        call.items = find_items(call, self.parts)
        call.seen = bool(call.items)
        keys = keys_of(call, call.items)
        adapter, config = self.parts.adapter, self.parts.config
        return make_units(call.items, keys, adapter=adapter, config=config, per=self.policies[0].per, device=device)

    def _clock(self, x: Tensor) -> float | None:
        if not self.options.timing:
            return None
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter()


def by_name(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a forward by name."""
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _forget(units: list[UnitState]) -> list[UnitState]:
    for unit in units:
        unit.inside = {}
    return units

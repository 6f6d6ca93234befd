"""Stage `projector`: tokens leave after the projector and before the language model.

Three hooks, none of which knows the family:

- before the outer multimodal module: note which positions are visual; translate masks of continued caches;
- before the decoder: ask the policies, and shorten everything that has a sequence dimension in one gather;
- after the decoder and the outer module: remember the cut with a cache the decoder made; prove that tokens went.

A fourth one on the tower notes how many rows each image has, and its features where a policy asked for them.
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

from ..errors import AlreadyWrappedError, InputError, NotEngagedError, UnsupportedModelError
from ..policies import ProjectorPolicy
from ..report import Report
from .cache import CacheState, Life, attach, physical_length, state_of
from .gather import Cut, shorten_inputs
from .parts import Parts
from .positions import compact, one_sequence, two_dimensional
from .prompt import PromptReader
from .select import apply_policies, budgets_remove
from .units import UnitState, make_units
from .visual import PIXELS, Call, TowerCall, find_items, keys_of, modalities, placeholder_masks


@dataclass
class Outcome:
    """What `report` is made from: nothing that would keep a cache or pixels alive.

    Attributes:
        units: after the policies.
        valid: [B] tensor or list, tokens per sample before, padding left out.
        elapsed: milliseconds of the selection, None if not asked for.
    """

    units: list[UnitState]
    valid: Any
    elapsed: float | None


class ProjectorStage:
    """The hooks of one wrapped model.

    Args:
        parts: of the model.
        policies: applied in order.
        positions: "original" (kept tokens keep their ids) or "compact" (renumbered without gaps).
        tokenizer: turns the prompt into the instruction's text, for policies that need it.
        timing: synchronise the device around the selection and report its time.
    """

    name = "projector"

    def __init__(self, *, parts: Parts, policies: list[ProjectorPolicy], positions: str, tokenizer: Any, timing: bool):
        self.parts, self.policies, self.positions = parts, policies, positions
        self.prompts = PromptReader(parts.model, tokenizer)
        self.timing, self.enabled = timing, True
        self.life = Life()
        self._last: Outcome | None = None
        self._local = threading.local()  # what one forward knows; forwards may run in several threads
        self._names = list(inspect.signature(type(parts.outer).forward).parameters)[1:]
        self._hooks: list[Any] = []

    def __deepcopy__(self, memo: dict) -> None:
        raise AlreadyWrappedError(
            "the model is wrapped and its hooks belong to this object alone: call handle.remove(), copy the model, "
            "then wrap both."
        )

    # Installing

    def install(self) -> None:
        """Register the hooks; on any failure none stays."""
        parts, add = self.parts, self._hooks.append
        try:
            add(parts.outer.register_forward_pre_hook(self.before_outer, with_kwargs=True))
            add(parts.outer.register_forward_hook(self.after_outer, always_call=True))
            add(parts.decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True))
            add(parts.decoder.register_forward_hook(self.after_decoder))
            add(parts.module(parts.adapter.tower).register_forward_hook(self.after_tower, with_kwargs=True))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        self.life.alive = False
        while self._hooks:
            self._hooks.pop().remove()

    def report(self) -> Report:
        """What the last forward with visual tokens did. Reads the device only here."""
        known = {}
        if self._last is not None:
            reports = [unit.report() for unit in self._last.units]
            lengths = [[int(n), int(n)] for n in self._last.valid]
            for unit in reports:
                lengths[unit.sample][1] -= unit.total - unit.kept
            known = {
                "units": reports,
                "lengths": [tuple(pair) for pair in lengths],
                "selection_ms": self._last.elapsed,
                "shape": self.parts.decoder_shape(),
            }
        text = " + ".join(f"{policy!r}" for policy in self.policies)
        return Report(policy=text, stage=self.name, positions=self.positions, **known)

    @property
    def call(self) -> Call | None:
        return getattr(self._local, "call", None)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(policy.needs for policy in self.policies))

    @property
    def keeps_all(self) -> bool:
        return all(policy.budget.keep == 1.0 for policy in self.policies)

    # Hooks

    def after_tower(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """`generate` may encode images before the outer module is called, so this is not tied to a call."""
        if not self.enabled:
            self._local.tower = []  # what was captured before is not about these images
            return
        if getattr(self._local, "tower_done", True):
            self._local.tower, self._local.tower_done = [], False
        encoder = None
        if "encoder" in self.needs:
            encoder = args[0].detach().flatten(0, -2)
        lengths = self.parts.adapter.lengths(self.parts.config, args, kwargs, output)
        rows = output if isinstance(output, Tensor) else output.pooler_output
        self._local.tower.append(TowerCall(lengths, encoder, rows.untyped_storage().data_ptr()))

    def before_outer(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        present = modalities(given) if self.enabled else []
        present = [name for name in present if self.parts.placeholder(name) is not None]
        self._continue_cache(given, fills=bool(present) and not self.keeps_all)
        self._local.call = None
        if present:
            if any(given.get(PIXELS[name]) is not None for name in present):
                self._local.tower, self._local.tower_done = [], False  # the tower runs inside this forward
            mask = given.get("attention_mask")
            call = Call(
                kwargs=given,
                masks=placeholder_masks(self.parts, given, present),
                mask=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
                tower=getattr(self._local, "tower", []),
            )
            if not call.visual.any():
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
        units = self._units(call, kwargs)
        call.wanted = budgets_remove(self.policies, units)
        if not call.wanted:
            self._record(units, call, None)
            return None
        batch, length = x.shape[:2]
        mask = call.segment_mask
        mask = torch.ones(batch, length) if mask is None else mask
        real = mask.to(x.device).bool()
        keep = real | (real.cumsum(1) > 0)  # left padding can always go
        for unit in units:
            keep[unit.sample, unit.slots] = False
        prompt = self.prompts.read(call, x, real, self.needs)
        started = self._clock(x)
        x = apply_policies(self.policies, units, x, prompt)
        elapsed = None if started is None else 1e3 * (self._clock(x) - started)
        for unit in units:
            keep[unit.sample, unit.slots] = True

        cut = Cut.from_keep(keep)
        cache = kwargs.get("past_key_values")
        past = physical_length(cache)
        positions = kwargs.get("position_ids")
        if positions is None:
            logical = 0 if cache is None else int(cache.get_seq_length())
            positions = (torch.arange(length, device=x.device) + logical)[None]
        short = shorten_inputs({**kwargs, "inputs_embeds": x}, cut, position_ids=positions, past=past)
        shift = None
        if self.positions == "compact":
            short["position_ids"], shift = compact(positions.expand(batch, -1), cut, real)
            if (state := state_of(cache)) is not None and state.shift is not None:
                shift = shift + state.shift
        if "flash" in str(module.config._attn_implementation) and batch == 1:
            short.update(one_sequence(short["inputs_embeds"], past))
        call.note = lambda cache: self._remember(cache, call, cut, real, past, shift)
        if cache is not None:
            call.note(cache)
        call.cut = True
        self._record(units, call, elapsed)
        return args, short

    def after_decoder(self, module: nn.Module, args: tuple, output: Any) -> None:
        """The decoder may have made the cache itself."""
        if self.call is None or not self.call.cut:
            return
        values = output if isinstance(output, tuple) else output.values()
        cache = next((value for value in values if hasattr(value, "get_query_offset")), None)
        if cache is not None and state_of(cache) is None:
            self.call.note(cache)

    def after_outer(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._local.tower_done = True
        call, self._local.call = self.call, None
        if output is None:  # the forward raised, and says why itself
            return
        if call is not None and not call.cut and (call.wanted or (not call.seen and not self.keeps_all)):
            raise NotEngagedError(
                f"{type(self.parts.model).__name__} had {int(call.visual.sum())} visual tokens and the budget asks to "
                f"remove some, but none was removed at stage {self.name!r}: the decoder was not called with the "
                "inputs_embeds of this forward; report it as a bug with the versions of transformers and tokenprune."
            )

    # Parts of the above

    def _continue_cache(self, given: dict[str, Any], *, fills: bool) -> None:
        """Translate mask and positions of a call that continues a pruned cache, or fills a static one, in place.

        Args:
            fills: this call brings visual tokens that are to be pruned.
        """
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        state = state_of(cache)
        if state is None and not fills:
            return
        segment = _segment(given)
        batch, new = segment.shape[:2]
        past = physical_length(cache)
        prepared = isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim == 4)
        if prepared and getattr(cache, "is_compileable", False):
            given["attention_mask"] = two_dimensional(mask, state, batch, new, past)
        elif state is not None:
            if prepared:
                raise UnsupportedModelError(
                    "attention_mask is 4-D in a call that continues a pruned cache, and does not say which tokens its "
                    "columns are about: give a 2-D mask over all tokens so far, or None."
                )
            given["attention_mask"] = state.physical_mask(mask, past, new)
        if state is not None and state.shift is not None:
            positions = given.get("position_ids")
            if positions is None:
                positions = (torch.arange(new, device=segment.device) + int(cache.get_seq_length()))[None]
            given["position_ids"] = positions - state.shift.to(positions.device)[:, None]

    def _units(self, call: Call, kwargs: dict[str, Any]) -> list[UnitState]:
        items = find_items(call)
        call.seen = bool(items)
        positions = kwargs.get("position_ids")
        return make_units(
            items,
            keys_of(call, items),
            adapter=self.parts.adapter,
            config=self.parts.config,
            per=self.policies[0].per,
            axes=positions[-3:].cpu() if positions is not None and positions.ndim == 3 else None,
            device=kwargs["inputs_embeds"].device,
        )

    def _remember(self, cache: Any, call: Call, cut: Cut, real: Tensor, past: int, shift: Tensor | None) -> None:
        """Tell the cache which slots are valid and how many tokens it stands for."""
        state = state_of(cache)
        batch, device = cut.valid.shape[0], cut.valid.device
        if call.mask is not None:
            before = call.mask[:, :past].to(device).bool()
        elif state is not None:
            before = state.valid_slots(past)
        else:
            before = cut.valid.new_ones(batch, past)
        old_valid = state is None or state.all_valid
        all_valid = not cut.ragged and (call.mask is None and old_valid)
        # A row of the mask that is 0 inside the segment (right padding) stays 0.
        valid = torch.cat([before, cut.valid & cut.take(real, 1)], 1)
        removed = cut.removed + (0 if state is None else state.removed)
        attach(cache, CacheState(self.life, valid, removed, all_valid or bool(valid.all()), shift))

    def _record(self, units: list[UnitState], call: Call, elapsed: float | None) -> None:
        batch, length = call.visual.shape
        valid = [length] * batch if call.mask is None else call.segment_mask.sum(1)
        for unit in units:
            unit.encoder = None
        self._last = Outcome(units, valid, elapsed)

    def _clock(self, x: Tensor) -> float | None:
        if not self.timing:
            return None
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter()


def _segment(given: dict[str, Any]) -> Tensor:
    """What this call adds: ids [B, new] or embeddings [B, new, D]."""
    ids = given.get("input_ids")
    return given["inputs_embeds"] if ids is None else ids

"""Stage `vision`: tokens leave inside the blocks of a vision transformer.

A block computes h = x + attention(norm1(x)), then h + mlp(norm2(h)), and h is a local variable of its forward. Hooks
still get in between: one in front of norm2 hands on the shortened h', so that the MLP reads fewer tokens; one behind
the last module of the branch keeps what it answered and answers zeros of shape [1, .., 1, D] instead, so that the sum
with the long h is legal; one behind the block answers h' plus what was kept. The attention is listened to for keys, and
given log sizes.

Whatever the model reads of a tower that merges is as long as it was: every place gets a copy of the token that carries
it. So means over tokens are weighted by size, and grids stay grids.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import Grid
from ..errors import NotEngagedError, UnsupportedPolicyError
from ..ops import attention_rows
from ..policies.vision import VisionPolicy
from .bias import with_bias
from .blocks import Block, has_class_token
from .hook import Hook, by_name, first_name
from .reduction_checks import settle
from .tap import listen, scale_of
from .timm_attention import listen_timm
from .tower_run import Run

MASKS = ("attention_mask", "attn_mask")
KNOWN = {*MASKS, "position_embeddings", "rope", "cu_seqlens", "max_seqlen"}  # arguments that are shortened


@dataclass(frozen=True)
class Tower:
    """A vision transformer.

    Attributes:
        name: of its model, for errors.
        module: itself.
        blocks: all of them.
        prefix: class, distillation and register tokens in front of the patches.
        read: blocks whose output is read, ascending.
        whole: those of the blocks up to the last one read whose attention sees the whole picture: where tokens may
            leave.
    """

    name: str
    module: nn.Module
    blocks: list[Block]
    prefix: int
    read: list[int]
    whole: list[int]

    @property
    def checkpoints(self) -> bool:
        """Whether blocks will run again in a backward."""
        blocks = any(getattr(block.module, "gradient_checkpointing", False) for block in self.blocks)
        timm = getattr(self.module, "grad_checkpointing", False)
        return torch.is_grad_enabled() and ((blocks and self.module.training) or timm)


@dataclass
class _Pending:
    """What a block has yet to answer: its tokens, and what its MLP made of them."""

    tokens: Tensor
    before: Tensor | None  # h as it was, where the block has not been proved to be of its shape
    branch: Tensor | None = None


class VisionStage:
    """The hooks in the blocks of one tower.

    Args:
        tower: its blocks.
        policy: decides.
        restore: what is read is as long as the input, zero where tokens were dropped.
        active: whether a call that begins now is to be shortened.
        everywhere: whether what any block answers may be read.
        grid: maps the patches of an image to (frames, rows, columns) or None.
        begun: called with every run as it begins, also with one that will remove nothing.
        done: called with every run that removes something, once the last block that is read is through.

    Raises:
        UnsupportedPolicyError: the tower lacks what the policy needs.
    """

    def __init__(
        self,
        tower: Tower,
        policy: VisionPolicy,
        *,
        restore: bool,
        active: Callable[[], bool],
        everywhere: Callable[[], bool] = lambda: False,
        grid: Callable[[int], Grid | None],
        begun: Callable[[Run], None] = lambda run: None,
        done: Callable[[Run], None] = lambda run: None,
    ):
        self.tower, self.policy, self.restore = tower, policy, restore
        self._active, self.everywhere, self._grid = active, everywhere, grid
        self._begun, self._done = begun, done
        self._local = threading.local()
        self._proved: set[int] = set()
        self._answered: set[int] = set()  # blocks where the policy was asked
        self._checked: set[tuple] = set()  # block and lengths for which it answered well; looking asks the device
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        for i, block in enumerate(self.tower.blocks):
            add = [
                block.module.register_forward_pre_hook(self._hook(self._before, i), with_kwargs=True),
                block.norm.register_forward_pre_hook(self._hook(self._between, i)),
                # before the hooks that transformers captures hidden states with
                block.module.register_forward_hook(self._hook(self._behind, i), prepend=True),
            ]
            if block.sums:
                add.append(block.tail.register_forward_pre_hook(Hook(self._summing)))
            else:
                add.append(block.tail.register_forward_hook(Hook(self._tail)))
            self._undo += [handle.remove for handle in add]
            if hasattr(block.attention, "config"):
                self._undo.append(listen(block.attention, self._listening(i)))
            else:
                noted = partial(self._noted, i)
                self._undo.append(listen_timm(block.attention, self._bias, self._noting(i), noted=noted))

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()

    def expanded(self, value: Tensor) -> Tensor:
        """[B, N, c] values of all places of the tower's input, from [B, n, c] of the tokens there are now."""
        run = self._run
        if run is None or not run.reduced or value.shape[1] == run.groups[0].total:
            return value
        return run.restored(value)

    def _hook(self, function: Callable[..., Any], i: int) -> Hook:
        return Hook(partial(function, i))

    @property
    def _run(self) -> Run | None:
        return getattr(self._local, "run", None)

    # Beginning

    def _plan(self, patches: int) -> tuple[Grid | None, dict[int, int]]:
        """Grid of an image, and what is left of it behind each block where anything leaves."""
        grid, whole = self._grid(patches), self.tower.whole
        counts = self.policy.counts(len(whole), patches, grid)
        before = [patches, *counts[:-1]]
        return grid, {block: k for block, n, k in zip(whole, before, counts, strict=True) if k < n}

    def _begin(self, x: Tensor, given: dict[str, Any]) -> None:
        if not self._active():
            return
        bounds = given.get("cu_seqlens")
        run = Run(x, bounds, self.tower.prefix, self._plan, first=self.tower.whole[0])
        self._begun(run)
        if not any(group.events for group in run.groups):
            for group in run.groups:
                group.lengths = [(group.total, group.total)] * len(self.tower.blocks)
            return
        if self.tower.checkpoints:
            raise UnsupportedPolicyError(
                f"gradient checkpointing runs the blocks of {self.tower.name} again in the backward, where policy "
                f"{self.policy.name!r} would shorten them once more: switch it off (gradient_checkpointing_disable)."
            )
        for name in MASKS:
            if not _sees_all(given.get(name)):
                raise UnsupportedPolicyError(
                    f"the blocks of {self.tower.name} are given an {name} that hides tokens or weighs them, and policy "
                    f"{self.policy.name!r} sees no difference between them: encode images of one size, or one at a "
                    "time, without a mask."
                )
        self._local.run = run

    # Hooks

    def _before(self, i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        if i == 0:
            self._local.run = self._local.pending = None  # of a call that raised
        begins = i == self.tower.whole[0]  # windows in front of it are not the bounds of images
        if not begins and self._run is None:
            return None
        given, hidden = by_name(module, args, kwargs), first_name(module)
        if begins:
            self._begin(given[hidden], given)
        if (run := self._run) is None:
            return None
        run.enter()
        if not run.reduced:
            return None
        if run.short is not None:
            given[hidden], run.short = run.short, None
        for name in MASKS:
            if name in given:
                given[name] = None
        if (windows := given.get("cu_seqlens")) is not None:
            given["cu_seqlens"] = run.bounds_now(windows)
            # an upper bound, for kernels that want one; made anew it waits for the device, and windows may keep theirs
            if given.get("max_seqlen") is not None and windows is run.bounds:
                given["max_seqlen"] = max(run.lengths)
        if (tables := given.get("position_embeddings")) is not None:
            given["position_embeddings"] = tuple(self._of_input(table) for table in tables)
        if (table := given.get("rope")) is not None:
            given["rope"] = self._of_input(table)
        for name, value in given.items():
            if name not in KNOWN and name != hidden and self._is_of_tokens(value):
                raise self._cannot_shorten(name, value)
        return (given.pop(hidden),), given

    def _of_input(self, table: Tensor) -> Tensor:
        """The rows of a rotary table that belong to the tokens left."""
        run = self._run
        if run.packing.packed:
            return run.of_input(table, patches_only=False)
        n, total = table.shape[-2], run.groups[0].total
        if table.ndim != 2 or n not in (total, total - run.prefix) or not self.tower.blocks[0].rotary:
            raise self._cannot_shorten("rotary table", table)
        return run.of_input(table, patches_only=n < total)[:, None]

    def _is_of_tokens(self, value: Any) -> bool:
        """Whether a block's argument has a number for each token of an image."""
        group = self._run.groups[0]
        return isinstance(value, Tensor) and bool({group.total, group.total - self._run.prefix} & set(value.shape))

    def _cannot_shorten(self, name: str, value: Tensor) -> UnsupportedPolicyError:
        return UnsupportedPolicyError(
            f"the blocks of {self.tower.name} are given a {name} of shape {tuple(value.shape)} for "
            f"{self._run.groups[0].total} tokens, which policy {self.policy.name!r} cannot shorten: use a model "
            "without it, or a policy behind the tower."
        )

    def _listening(self, i: int) -> Callable[..., Tensor | None]:
        note = self._noting(i)

        def listening(module: nn.Module, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> Any:
            bias = self._bias(key.shape[2])
            if bias is not None and "class_attention" in self.policy.reads:
                mask = with_bias(mask, bias, query.dtype)
            note(module, query, key, mask, kwargs)
            return bias

        return listening

    def _bias(self, keys: int) -> Tensor | None:
        run = self._run
        return None if run is None or not self.policy.proportional else run.bias(keys)

    def _noted(self, i: int) -> bool:
        run = self._run
        return run is not None and run.event(i)

    def _noting(self, i: int) -> Callable[..., None]:
        def note(module: nn.Module, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
            run = self._run
            if run is None:
                return
            run.heard = True
            if not self._noted(i):
                return
            with torch.autocast(key.device.type, enabled=False):
                if "keys" in self.policy.reads:
                    mean = key.mean(1, dtype=torch.float32)
                    run.keys += list(mean) if run.packing.packed else [mean]
                if "class_attention" in self.policy.reads:
                    scale = scale_of(query, kwargs)
                    seen = None if mask is None else mask[:, :, :1]
                    run.class_attention = attention_rows(query[:, :, :1], key, scale, seen)[:, 0]

        return note

    def _between(self, i: int, module: nn.Module, args: tuple) -> tuple | None:
        run = self._run
        if run is None or self.policy.behind or not run.event(i):
            return None
        if self.policy.reads and not run.heard:
            raise self._unheard(i)
        tokens = self._reduced(run, i, args[0])
        self._local.pending = _Pending(tokens, args[0] if i not in self._proved else None)
        return tokens, *args[1:]

    def _reduced(self, run: Run, i: int, x: Tensor) -> Tensor:
        whole, key = self.tower.whole, (i, *run.lengths)
        look = "never" if key in self._checked else "later" if i in self._answered else "now"
        self._answered.add(i)
        return run.reduce(self.policy, x, event=i, block=whole.index(i), depth=len(whole), look=look)

    def _settle(self, run: Run) -> None:
        """Look at answers that were new, all at once."""
        settle(self.policy, run.doubts, run.prefix)
        self._checked.update(one.key for one in run.doubts)

    def _tail(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        pending = getattr(self._local, "pending", None)
        if pending is None:
            return None
        pending.branch = output
        return self._run.zeros(output)

    def _summing(self, module: nn.Module, args: tuple) -> tuple | None:
        pending = getattr(self._local, "pending", None)
        return None if pending is None else (args[0], pending.tokens, *args[2:])

    def _behind(self, i: int, module: nn.Module, args: tuple, output: Any) -> Any:
        run, pending = self._run, getattr(self._local, "pending", None)
        if run is None:
            return None
        self._local.pending = None
        hidden = output[0] if isinstance(output, tuple) else output
        if pending is not None and not self.tower.blocks[i].sums:
            self._prove(i, pending, hidden)
            hidden = pending.tokens + self.tower.blocks[i].scaled(pending.branch)
        if not run.heard and (self.policy.reads or self.policy.proportional):
            raise self._unheard(i)
        run.leave()
        if self.policy.behind and run.event(i):
            hidden = self._reduced(run, i, hidden)
        if self.restore and run.reduced and self._is_read(i, module):
            run.short, hidden = hidden, run.restored(hidden)
        if i == self.tower.read[-1]:
            self._settle(run)
            self._done(run)
        if i == len(self.tower.blocks) - 1:
            run.finish()
            self._local.run = None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _unheard(self, i: int) -> NotEngagedError:
        return NotEngagedError(
            f"block {i} of {self.tower.name} ({type(self.tower.blocks[i].module).__name__}) does not hand its queries "
            f"and keys to an attention implementation that can be chosen, so policy {self.policy.name!r} cannot read "
            "them: use another model, or a policy behind the tower."
        )

    def _is_read(self, i: int, module: nn.Module) -> bool:
        """Whether anything but the next block reads what this one answers."""
        if self.everywhere() or i in self.tower.read or i == len(self.tower.blocks) - 1:
            return True
        return any(not isinstance(hook, Hook) for hook in module._forward_hooks.values())  # captured hidden states

    def _prove(self, i: int, pending: _Pending, output: Tensor) -> None:
        """With a branch of zeros, a pre-norm block answers h. Looked at once per block."""
        if pending.before is not None:
            if pending.branch is None or not torch.equal(pending.before.nan_to_num(), output.nan_to_num()):
                raise NotEngagedError(
                    f"block {i} of {self.tower.name} ({type(self.tower.blocks[i].module).__name__}) does not compute "
                    "h + mlp(norm2(h)), as its parts' names suggest, so nothing can leave inside of it: report it with "
                    "your version of transformers or timm."
                )
            self._proved.add(i)


def check_class_token(policy: VisionPolicy, tower: nn.Module, name: str) -> None:
    """Raises: UnsupportedPolicyError where the policy reads attention of a class token that the tower has not."""
    if "class_attention" in policy.reads and not has_class_token(tower):
        raise UnsupportedPolicyError(
            f"policy={policy.name!r} ranks tokens by the attention of a class token, and the vision transformer of "
            f"{name} has none: use 'tome', which compares keys."
        )


def _sees_all(mask: Any) -> bool:
    if not isinstance(mask, Tensor):
        return mask is None
    return bool(mask.all() if mask.dtype == torch.bool else (mask == 0).all())

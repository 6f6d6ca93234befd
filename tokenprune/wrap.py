"""`wrap` and the handle it returns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from .adapters import lookup, supported
from .budget import Unit, Whole
from .errors import (
    AlreadyWrappedError,
    InvalidArgumentError,
    UnsupportedModelError,
    UnsupportedPolicyError,
    nearest,
)
from .fingerprint import check_fingerprint
from .policies import Policy, ProjectorPolicy
from .policies.encoder import EncoderPolicy
from .policies.layer import LayerPolicy
from .policies.skipping import SkipPolicy
from .policies.vision import VisionPolicy
from .registry import get_policy
from .report import Report, SkipReport
from .stages.encoder import EncoderStage, find_encoder
from .stages.encoder_report import EncoderReport
from .stages.hook import Hook
from .stages.outcome import Options
from .stages.parts import Parts, find_parts, unwrapped
from .stages.plain import PlainParts, PlainStages, find_plain, is_bare
from .stages.positions import NO_COMPACT
from .stages.runtime import Stages
from .stages.skip import SkipStage
from .stages.skip_parts import find_skip_parts
from .tokens import looks_inside

POSITIONS = ("original", "compact")
LOGITS = ("kept", "full")


class Handle:
    """A wrapped model. Remove it, or use it in a `with` block, to get the model back exactly as it was.

    Attributes:
        enabled: set to False to run dense for a while; caches pruned before stay usable.
        instruction: what query-aware policies take for the question, instead of the whole text of the prompt: a
            string, one string per sample, or None. As embeddings it is used only if `tokenizer` was given.
        image_sizes: (width, height) of the pictures of the batch before the processor, in order, for `debiased` with
            padding; None where not known.
    """

    def __init__(self, stage: Stages | PlainStages | SkipStage | EncoderStage):
        self._stage = stage

    @property
    def enabled(self) -> bool:
        return self._stage.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._stage.enabled = bool(value)

    @property
    def instruction(self) -> str | list[str] | None:
        return self._with_prompts("instruction").prompts.instruction

    @instruction.setter
    def instruction(self, value: str | list[str] | None) -> None:
        self._with_prompts("instruction").prompts.instruction = value

    @property
    def image_sizes(self) -> list[tuple[int, int]] | None:
        return self._with_prompts("image_sizes").image_sizes

    @image_sizes.setter
    def image_sizes(self, value: list[tuple[int, int]] | None) -> None:
        self._with_prompts("image_sizes").image_sizes = value

    def _with_prompts(self, name: str) -> Stages:
        if isinstance(self._stage, PlainStages):
            raise InvalidArgumentError(
                f"{name} is about prompts, and a vision transformer by itself has none: drop it."
            )
        if isinstance(self._stage, (SkipStage, EncoderStage)):
            raise InvalidArgumentError(
                f"{name} is about visual tokens, and policy={self._stage.policy.name!r} is about all tokens: drop it."
            )
        return self._stage

    @property
    def policies(self) -> list[Policy]:
        return list(self._stage.every_policy)

    def report(self) -> Report | SkipReport | EncoderReport:
        """What the last forward with visual tokens did: kept/total per unit, where, and what it saved.

        Of policies of stage "skip" what the last prompt did: skipped/total pairs of token and block. Of those of stage
        "encoder" kept/total tokens of the last texts.
        """
        return self._stage.report()

    def remove(self) -> None:
        """Take all hooks off. Calling it again does nothing."""
        if self._stage.life.alive:
            self._stage.remove()
            _forget_compiled_code()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "removed" if not self._stage.life.alive else "on" if self.enabled else "off"
        policies = " + ".join(map(repr, self._stage.every_policy))
        return f"Handle({type(self._stage.parts.model).__name__}, {policies}, {state})"


def wrap(
    model: Any,
    policy: str | Policy | Sequence[Policy | str],
    *,
    keep: int | float | None = None,
    per: Unit | None = None,
    of: Whole | None = None,
    positions: str | None = None,
    logits: str = "kept",
    drop_empty_rows: bool = False,
    images_are_frames: bool = False,
    restore: bool | None = None,
    tokenizer: Any = None,
    timing: bool = False,
) -> Handle:
    """Prune the visual tokens of every later forward and `generate` of a loaded model, in place.

    Args:
        model: a loaded transformers vision-language model, or a vision transformer (of transformers or timm) for
            policies of stage "vision", or a language model for those of stage "skip", or a BERT-type encoder of texts
            for those of stage "encoder". Its attention implementation stays as it is.
        policy: a registered name (`tokenprune.list_policies()`), a policy, or a list of them, applied in order;
            one inside the vision tower before those in front of the language model, these before those inside of it.
        keep: budget of the policies that have none of their own: an int (tokens) or a float in (0, 1] (share).
        per: unit the budget is counted over: "image" (the default), "crop", "frame" or "prompt". All policies share it.
        of: "image" or "prompt" where `keep` is meant of a whole image (video) or prompt and is split over its units
            by size: `keep=640, per="crop", of="image"` keeps 640 tokens of an image, chosen crop by crop.
        positions: "original" (kept tokens keep their position ids) or "compact" (renumbered without gaps; 1-D positions
            only), for all policies. None: as each policy's paper has it ("compact" in front of the language model if
            any policy there says so), and "original" for time, row and column positions.
        logits: "kept" (a forward answers one row per token left; the default) or "full" (as many rows as the prompt
            has: a removed position repeats the last kept one before it). With `labels` they are full in any case.
        drop_empty_rows: newline and row-break tokens leave with the last token of their line; by default they stay.
        images_are_frames: the images of each prompt, of one size, are the frames of one video, as the processors of
            InternVL and SmolVLM write videos.
        restore: what a language model reads of a tower whose tokens a policy merged. True: as many tokens as ever, a
            copy for each of those merged, so that each counts for its size. False: the tokens left, at the positions
            where they stood, each counting for one; only where the projector makes one token of one patch. None: True
            for policies that merge, False for those that drop, which have no copies. Of stage "encoder": see
            `stages.encoder`; None is True there.
        tokenizer: the model's tokenizer, for policies that need the instruction as text.
        timing: measure the selection (synchronises the device), for `report()`.

    Returns:
        The handle. The model behaves as before once `handle.remove()` is called.

    Raises:
        InvalidArgumentError: a bad value, named with its remedy.
        UnknownPolicyError: no policy of this name.
        UnsupportedModelError: the model cannot be pruned; the message says why.
        UnsupportedPolicyError: the model lacks what a policy needs.
        PredictorError: a policy's trained module belongs to another model.
        AlreadyWrappedError: the model is wrapped already, or a forward of it is running.

    `torch.compile(model.forward)` after `wrap` works (with graph breaks at the prefill); compiled code made before is
    discarded for the whole process, since it would ignore the hooks silently.
    """
    policies = _policies(policy, keep, per, of)
    if restore not in (None, True, False):
        raise InvalidArgumentError(f"restore={restore!r} is none of True, False and None: give one of these.")
    for name, value, allowed in (("positions", positions, POSITIONS), ("logits", logits, LOGITS)):
        if value not in allowed and not (name == "positions" and value is None):
            raise InvalidArgumentError(f"{name}={value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}.")
    options = Options(
        positions=positions,
        logits=logits,
        drop_empty_rows=drop_empty_rows,
        images_are_frames=images_are_frames,
        restore=restore,
        tokenizer=tokenizer,
        timing=timing,
    )
    inner = unwrapped(model)
    known = lookup(getattr(getattr(inner, "config", None), "model_type", None)) is not None
    if any(isinstance(one, SkipPolicy) for one in policies):
        stage: Stages | PlainStages | SkipStage | EncoderStage = _skip_stage(model, policies, options)
    elif any(isinstance(one, EncoderPolicy) for one in policies):
        stage = _encoder_stage(model, policies, options)
    elif not known and (plain := find_plain(inner)) is not None:
        stage = _plain_stages(plain, policies, options)
    elif not known and all(isinstance(one, VisionPolicy) for one in policies) and is_bare(inner):
        raise UnsupportedModelError(
            f"model={type(inner).__name__} has no blocks that tokens can leave: give a vision transformer whose blocks "
            "compute h = x + attention(norm1(x)), then h + mlp(norm2(h)) (of transformers CLIP, SigLIP, ViT, DeiT, "
            "DINOv2, DINOv3, VideoMAE and the like, of timm VisionTransformer and Eva)."
        )
    else:
        parts = find_parts(model, lookup, supported())
        _check_free(type(parts.model).__name__, parts.outer, (parts.model, parts.outer, parts.decoder))
        _check_needs(policies, parts, positions)
        stage = Stages(
            parts=parts,
            vision_policies=[one for one in policies if isinstance(one, VisionPolicy)],
            policies=[one for one in policies if isinstance(one, ProjectorPolicy)],
            layer_policies=[one for one in policies if isinstance(one, LayerPolicy)],
            options=options,
        )
    stage.install()
    _forget_compiled_code()
    return Handle(stage)


def _plain_stages(parts: PlainParts, policies: list[Policy], options: Options) -> PlainStages:
    """Of a vision transformer without a language model, which all options are about."""
    kind = type(parts.model).__name__
    _check_free(kind, parts.tower, parts.entered)
    for one in fields(options):
        if (value := getattr(options, one.name)) != one.default:
            raise InvalidArgumentError(
                f"{one.name}={value!r} is about what a language model reads, and {kind} has none: drop it."
            )
    policies = [one for one in policies if one.name != "none"]
    if not policies:
        raise InvalidArgumentError(f"policy='none' leaves {kind} as it is: call it without wrap.")
    for one in policies:
        if not isinstance(one, VisionPolicy):
            raise UnsupportedPolicyError(
                f"policy={one.name!r} works at stage {one.stage!r}, and {kind} has no language model: give one of "
                "stage 'vision' (tome, evit, sta, random-blocks)."
            )
    return PlainStages(parts, policies[0])


def _alone(kind: type[Policy], policies: list[Policy], options: Options, *, but: str = "") -> Policy:
    """The policy of a kind that takes no other beside it, and no option but one."""
    policy = next(one for one in policies if isinstance(one, kind))
    if len(policies) > 1:
        raise InvalidArgumentError(
            f"policy has {', '.join(repr(one.name) for one in policies)}, and {policy.name!r} works alone: drop the "
            "others."
        )
    for one in fields(options):
        if (value := getattr(options, one.name)) != one.default and one.name != but:
            raise InvalidArgumentError(f"{one.name}={value!r} says nothing to {policy.name!r}: drop it.")
    return policy


def _skip_stage(model: Any, policies: list[Policy], options: Options) -> SkipStage:
    """Of a policy by which tokens skip blocks of a language model."""
    policy = _alone(SkipPolicy, policies, options)
    parts = find_skip_parts(model)
    _check_free(type(parts.model).__name__, parts.outer, (parts.model, parts.outer, parts.decoder))
    _check_trained(policy, parts.model)
    return SkipStage(parts, policy)


def _encoder_stage(model: Any, policies: list[Policy], options: Options) -> EncoderStage:
    """Of a policy that drops tokens of texts in front of an encoder."""
    policy = _alone(EncoderPolicy, policies, options, but="restore")
    if policy.ratio is None and not policy.adaptive:
        raise InvalidArgumentError(f"ratio=None leaves {policy.name!r} without a budget: give a share in (0, 1].")
    parts = find_encoder(model)
    _check_free(type(parts.model).__name__, parts.encoder, parts.entered)
    _check_trained(policy, parts.model)
    return EncoderStage(parts, policy, restore=options.restore is not False)


def _policies(policy: Any, keep: int | float | None, per: Unit | None, of: Whole | None) -> list[Policy]:
    """Policies with their budgets filled in; the caller's objects are left alone."""
    several = [policy] if isinstance(policy, (str, Policy)) else policy
    if not isinstance(several, Sequence) or not several:
        raise InvalidArgumentError(
            f"policy={policy!r} is no policy: give a registered name, a policy, or a list with at least one of them."
        )
    made = []
    for one in several:
        if isinstance(one, str):
            one = get_policy(one)()
        if isinstance(one, type) or not isinstance(one, Policy):
            raise InvalidArgumentError(f"policy={one!r} is no policy: give a registered name or a policy object.")
        if not isinstance(one, (VisionPolicy, ProjectorPolicy, LayerPolicy, SkipPolicy, EncoderPolicy)):
            raise InvalidArgumentError(
                f"policy={one.name!r} works at stage {one.stage!r}, where wrap has no part: see `tokenprune show "
                f"{one.name}` for how to use it."
            )
        if keep is not None and one.name != "none":
            if one.keep is not None:
                raise InvalidArgumentError(
                    f"keep={keep!r} is given twice, the policy has keep={one.keep!r} of its own: drop one of them."
                )
            one = replace(one, keep=keep)
        if one.keep is None and not getattr(one, "budgeted", False):
            raise InvalidArgumentError(
                f"keep=None leaves {one.name!r} without a budget: give wrap(..., keep=...), an int (tokens) or a float "
                f"in (0, 1] (share){', or its own r' if hasattr(one, 'r') else ''}."
            )
        if not isinstance(one, VisionPolicy) or len(several) == 1:  # beside others, which sees one picture at a time
            changes = {name: value for name, value in (("per", per), ("of", of)) if value is not None}
            one = replace(one, **changes) if changes else one
        made.append(one)
    if len(inside := [one for one in made if isinstance(one, VisionPolicy)]) > 1:
        raise InvalidArgumentError(
            f"policy has {' and '.join(repr(one.name) for one in inside)} inside the vision tower, where one can work: "
            "drop the others."
        )
    units = {one.per for one in made if not isinstance(one, VisionPolicy)}
    if len(units) > 1:
        raise InvalidArgumentError(
            f"per={' and '.join(map(repr, sorted(units)))} differ between policies of one call: give them the same."
        )
    return made


def _check_free(kind: str, hooked: nn.Module, modules: Sequence[nn.Module]) -> None:
    """No second wrap, and no wrap from inside a forward.

    Args:
        kind: name of the model's class.
        hooked: module that has a hook of ours if the model is wrapped.
        modules: whose call is a forward.
    """
    for hook in hooked._forward_pre_hooks.values():
        if isinstance(hook, Hook):
            raise AlreadyWrappedError(
                f"model={kind} is wrapped already: compose policies in one call, wrap(model, [a, b]), or remove the "
                "first handle."
            )
    called = {id(module) for module in modules}
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_call_impl" and id(frame.f_locals.get("self")) in called:
            raise AlreadyWrappedError(f"model={kind} is inside a forward: wrap it before or after.")
        frame = frame.f_back


def _check_trained(policy: Policy, model: Any) -> None:
    if (trained := getattr(policy, "trained", None)) is not None:
        check_fingerprint(trained.base, model, policy.name)


def _check_needs(policies: list[Policy], parts: Parts, positions: str | None) -> None:
    """What can be known before the first forward."""
    for one in policies:
        _check_trained(one, parts.model)
        if looks_inside(one.needs) and parts.adapter.patches is None:
            raise UnsupportedPolicyError(
                f"policy={one.name!r} needs the tower features of each visual token, and {parts.adapter.model_type!r} "
                "mixes them beyond recognition: use a policy or relevance on projected features (features='projector', "
                "TextRelevance)."
            )
        if "projection" in one.needs and parts.adapter.project is None:
            raise UnsupportedPolicyError(
                f"policy={one.name!r} calls the projector of single tokens, and that of {parts.adapter.model_type!r} "
                "makes tokens of more than their own patches: use a policy that reads projected features."
            )
    if positions == "compact" and parts.several_axes:
        raise InvalidArgumentError(NO_COMPACT.format(family=parts.adapter.model_type))


def _forget_compiled_code() -> None:
    """Compiled graphs do not notice hooks that come or go: without this they would go on unpruned, or pruned."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()

"""A class of lmms-eval whose model is pruned: the base's own code, and what is noted around it.

`--model tokenprune --model_args base=llava_hf,pretrained=...,policy=cdpruner,keep=64` builds it inside lmms-eval, which
then looks up a task's prompts under the name "tokenprune". `tokenprune eval` looks them up under the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts, unwrap_generation_output
from lmms_eval.api.model import lmms
from loguru import logger
from torch import nn

from ... import wrap
from ...command import number
from ...errors import InputError, InvalidArgumentError, nearest
from ...policies import Policy
from .. import specs
from .journal import Entry, Journal, documents, key
from .watch import Stopped, Watch

OWN = ("policy", "keep", "per", "positions")  # arguments that are not the base's


@dataclass
class Counts(TokenCounts):
    """Tokens of one answer as the log of samples gets them, with those of the pictures."""

    visual: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        seen = {f"visual_{name}": value for name, value in (self.visual or {}).items() if value is not None}
        return {**super().to_dict(), **seen}


class Recorded:
    """Stands in front of a base class: prunes its model while it answers, and keeps every answer as it comes.

    Attributes:
        policies: none of them is the dense model.
        options: further arguments of `wrap`.
        journal: where answers are kept; None for nowhere.
        keeps_model: stay loaded behind an evaluation.
        failures: errors that the base took for empty answers, since the last `prune`.
    """

    policies: Sequence[Policy] = ()
    options: dict[str, Any] = {}
    journal: Journal | None = None
    keeps_model = False
    failures: Sequence[str] = ()
    _watch: Watch | None = None

    def prune(self, policies: Sequence[Policy], journal: Journal | None = None, **options: Any) -> None:
        """From the next request on.

        Raises:
            TokenPruneError: the model cannot be pruned so.
        """
        wrap(transformers_model(self), list(policies) or "none", **options).remove()
        self.policies, self.journal, self.options, self.failures = tuple(policies), journal, options, []

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The base's answers, or those that the journal has."""
        journal = self.journal
        if journal is None:
            return self._asked(requests, lambda *_: None)
        if self._alone():
            journal.read()
        told = documents(self.task_dict)
        keys = {id(one): key(one, told(one)) for one in requests}
        known = [journal.get(keys[id(one)]) for one in requests]
        new = [one for one, entry in zip(requests, known, strict=True) if entry is None]
        answers = iter(self._asked(new, lambda one, entry: journal.note(keys[id(one)], entry)) if new else ())
        return [next(answers) if entry is None else _result(entry.answer, None, entry.visual) for entry in known]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The base's, of its pruned model; not kept in the journal."""
        return self._watched("loglikelihood", requests)[0]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """The base's, of its pruned model; not kept in the journal."""
        return self._watched("generate_until_multi_round", requests)[0]

    def _watched(
        self, kind: str, requests: list[Instance], note: Callable[[Instance, Entry], None] = lambda *_: None
    ) -> tuple[list[Any], Watch]:
        """What the base answers with its model pruned, and who looked on."""
        if self._watch is not None:  # one kind of request may be made of others
            return getattr(super(), kind)(requests), self._watch
        model = transformers_model(self)
        try:
            with wrap(model, list(self.policies) or "none", tokenizer=_tokenizer(self), **self.options) as handle:
                self._watch = watch = Watch(self, model, handle, requests, note)
                with watch:
                    outputs = self._by_task(getattr(super(), kind), requests)
        except Stopped as stopped:
            raise stopped.__cause__ from None
        finally:
            self._watch = None
        self.failures = [*self.failures, *watch.failures]
        if watch.failures:
            logger.warning(f"{len(watch.failures)} answers are empty because of errors, the first: {watch.failures[0]}")
        return outputs, watch

    @staticmethod
    def _by_task(answered: Callable[[list[Instance]], list[Any]], requests: list[Instance]) -> list[Any]:
        """One task after the other: bases that batch read the documents of a whole batch in the task of its first."""
        groups: dict[Any, list[int]] = {}
        for i, one in enumerate(requests):
            groups.setdefault((one.task_name, one.args[-1]), []).append(i)
        found: dict[int, Any] = {}
        for places in groups.values():
            found |= zip(places, answered([requests[i] for i in places]), strict=True)
        return [found[i] for i in range(len(requests))]

    def _asked(self, requests: list[Instance], note: Callable[[Instance, Entry], None]) -> list[GenerationResult]:
        outputs, watch = self._watched("generate_until", requests, note)
        results = []
        for request, output in zip(requests, outputs, strict=True):
            answer, counts = unwrap_generation_output(output)
            visual = watch.seen.get((request.task_name, request.doc_id))
            if answer or not watch.failures:  # an empty one may be an error's: asked again next time
                note(request, Entry(answer, visual))
            results.append(_result(answer, counts, visual))
        return results

    def _alone(self) -> bool:
        """Whether processes answer independently: sharded ones need as many requests each."""
        kind = str(getattr(getattr(self, "accelerator", None), "distributed_type", "NO"))
        return not any(sharded in kind for sharded in ("FSDP", "DEEPSPEED", "MEGATRON"))

    def clean(self) -> None:
        if not self.keeps_model:
            super().clean()


def _result(answer: str, counts: TokenCounts | None, visual: dict[str, Any] | None) -> GenerationResult:
    plain = TokenCounts() if counts is None else counts
    return GenerationResult(answer, Counts(plain.input_tokens, plain.output_tokens, plain.reasoning_tokens, visual))


def transformers_model(lm: Any) -> nn.Module:
    """Of an instance of a class of lmms-eval.

    Raises:
        InputError: it has none in this process.
    """
    model = getattr(lm, "model", None)
    model = getattr(lm, "_model", None) if model is None else model
    if not isinstance(model, nn.Module) or not hasattr(model, "generate"):
        name = next(one.__name__ for one in type(lm).__mro__ if one.__module__.startswith("lmms_eval"))
        raise InputError(f"base={name!r} runs no transformers model in this process: give one that does, as llava_hf.")
    return model


def _tokenizer(lm: Any) -> Any:
    return getattr(lm, "_tokenizer", None) or getattr(getattr(lm, "processor", None), "tokenizer", None)


def built(base: str, arguments: dict[str, Any]) -> Any:
    """An instance of the class of lmms-eval that `base` names, made of `arguments`, which can be pruned.

    "force_simple" among them asks for the class of prompts as text, where there is one of messages, too.

    Raises:
        InputError: no such base, or it cannot be made of these.
    """
    from lmms_eval.models import get_model, list_available_models

    known = [name for name in list_available_models(include_aliases=True) if name != "tokenprune"]
    if base not in known:
        hint = nearest(base, known) or ": `python -m lmms_eval models` lists them"
        raise InputError(f"base={base!r} is no model of lmms-eval{hint}.")
    arguments = dict(arguments)
    try:
        kind = get_model(base, bool(arguments.pop("force_simple", False)))
        made = type(kind.__name__, (Recorded, kind), {"__module__": kind.__module__})
        return made(**arguments)
    except (AssertionError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        given = ",".join(f"{name}={value}" for name, value in arguments.items())
        raise InputError(f"base={base!r} cannot be made of {given} ({said}): check --base-args.") from None


class TokenPrune(lmms):
    """What `--model tokenprune` names: makes an instance of the base, never one of its own."""

    is_simple = False

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> Any:
        """
        Raises:
            InputError, InvalidArgumentError, UnknownPolicyError: of a bad argument.
        """
        from lmms_eval.utils import simple_parse_args_string

        given = simple_parse_args_string(arg_string)
        if "base" not in given:
            raise InvalidArgumentError(
                "base=None: give --model_args base=NAME,policy=NAME,keep=NUMBER and the base's own arguments."
            )
        base, own = given.pop("base"), {name: given.pop(name) for name in OWN if name in given}
        given |= {name: value for name, value in (additional_config or {}).items() if value is not None}
        policies = specs.policies(
            str(own.get("policy", "none")),
            keep=None if own.get("keep") is None else number(str(own["keep"])),
            per=own.get("per"),
        )
        lm = built(base, given)
        lm.prune(policies, positions=own.get("positions"))
        logger.warning(
            f"lmms-eval looks up prompts under the name 'tokenprune', which may differ from those of {base!r}: run the "
            "dense model with policy=none, or use `tokenprune eval`"
        )
        return lm

    def loglikelihood(self, requests: Any) -> Any:
        raise NotImplementedError

    generate_until = generate_until_multi_round = loglikelihood

"""A model of lmms-eval, loaded once, and asked the same tasks under one configuration after the other."""

from __future__ import annotations

import hashlib
import json
import platform
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager, get_task_dict
from lmms_eval.utils import handle_non_serializable

import tokenprune

from ... import adapters
from ...errors import InputError, TokenPruneError, nearest
from ...policies import Policy
from .. import specs
from ..files import replaced
from .journal import Journal, writing
from .model import built, transformers_model
from .watch import said

LOOKED_AT = 50  # documents of a task that are searched for a picture
RESULTS = "results.json"


class Session:
    """A loaded base of lmms-eval.

    Args:
        base: name of a model of lmms-eval that runs a transformers model in this process.
        base_args: arguments of its class.
        batch_size: of the base, where it takes any.
        include_path: folders with tasks beside those of lmms-eval.
        defaults: also the tasks that come with lmms-eval; finding them takes some seconds.

    Attributes:
        model, processor: of transformers.
        rank: of this process. Only rank 0 has results.

    Raises:
        InputError: no such base, or it cannot be made of these.
    """

    def __init__(
        self,
        base: str,
        base_args: dict[str, Any],
        *,
        batch_size: int = 1,
        include_path: Sequence[Path] = (),
        defaults: bool = True,
        seed: int = 0,
    ):
        self.base, self.base_args, self.batch_size, self.seed = base, dict(base_args), batch_size, seed
        if torch.distributed.is_torchelastic_launched() and not torch.cuda.is_available():
            PartialState(cpu=True)  # accelerate takes processes without a GPU for one each by itself
        if "batch_size" in base_args:
            raise InputError(f"base_args has batch_size={base_args['batch_size']}: give --batch-size instead.")
        for one in include_path:
            if not one.is_dir():
                raise InputError(f"include_path={str(one)!r} is no folder: give one with tasks of lmms-eval.")
        paths = [str(one) for one in include_path]
        try:
            self.manager = TaskManager("ERROR", include_path=paths, include_defaults=defaults, model_name=base)
        except Exception as error:
            raise InputError(f"include_path={paths} has a task that cannot be read ({said(error)}).") from error
        self.lm = built(base, {**base_args, "batch_size": batch_size})
        self.lm.keeps_model = True
        self.model = transformers_model(self.lm)
        self.processor = getattr(self.lm, "processor", None) or getattr(self.lm, "_image_processor", None)

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    def check(self, tasks: Sequence[str]) -> None:
        """Loads tasks, which have to show the model pictures.

        Raises:
            InputError: an unknown task, one that cannot be loaded, or one without images and videos.
        """
        for name in tasks:
            if name not in self.manager.all_tasks:
                hint = nearest(name, self.manager.all_tasks) or ": `python -m lmms_eval tasks` lists them"
                raise InputError(f"tasks={name!r} is no task of lmms-eval{hint}.")
            with _sentence(name):
                found = get_task_dict([name], self.manager, "simple" if self.lm.is_simple else "chat")
            for leaf, task in _leaves(found):
                documents = task.test_docs() if task.has_test_docs() else task.validation_docs()
                some = (documents[i] for i in range(min(LOOKED_AT, len(documents))))
                with _sentence(leaf):
                    shown = any(task.doc_to_visual(one) for one in some)
                if not shown:
                    raise InputError(
                        f"tasks={leaf!r} shows the model no image or video in its first {LOOKED_AT} documents: there "
                        "is nothing to prune, give a task with pictures."
                    )

    def serves(self, made: Sequence[Policy], **options: Any) -> None:
        """
        Raises:
            TokenPruneError: the model cannot be pruned so.
        """
        self.lm.prune(made, **options)

    def evaluate(
        self,
        made: Sequence[Policy],
        tasks: Sequence[str],
        folder: Path,
        *,
        limit: int | None = None,
        offset: int = 0,
        fresh: bool = False,
        **options: Any,
    ) -> dict[str, Any] | None:
        """Answers to documents offset to offset + limit - 1 of each task, those of the folder's journal not again.

        Writes results.json and samples_<task>.jsonl into the folder, and answers what is in results.json; None in
        processes of another rank than 0.

        Args:
            made: the policies, none for the dense model.
            fresh: forget the answers that the folder holds.
            options: of `wrap`.

        Raises:
            TokenPruneError: the model cannot be pruned so; the folder holds answers of another configuration, or cannot
                be written: answers up to then are kept.
        """
        settings = {
            "base": self.base,
            "base_args": self.base_args,
            "batch_size": self.batch_size,
            "policy": specs.text(made),
            "options": {name: value for name, value in options.items() if value is not None},
            "seed": self.seed,
            "versions": versions(),
            "weights": weights(self.base_args),
        }
        self.serves(made, **options)
        self.lm.journal = Journal(folder, settings, rank=self.rank, fresh=fresh)
        arguments = Namespace(
            model=self.base, output_path=str(folder), process_with_media=False, predict_only=False, reasoning_tags=None
        )
        try:
            result = simple_evaluate(
                self.lm,
                tasks=list(tasks),
                task_manager=self.manager,
                limit=limit,
                offset=offset,
                batch_size=self.batch_size,
                cli_args=arguments,
                bootstrap_iters=0,
                random_seed=self.seed,
                numpy_random_seed=self.seed,
                torch_random_seed=self.seed,
            )
        except TokenPruneError:
            raise
        except Exception as error:
            raise InputError(
                f"base={self.base!r} fails on {', '.join(tasks)} ({said(error)}): try the same in lmms-eval "
                "itself; answers up to then are kept."
            ) from error
        failures = self._failures()
        if result is None:
            return None
        samples = {name: _samples(lines) for name, lines in result["samples"].items()}
        facts = {
            "settings": {
                **settings,
                "keep": specs.label(made),
                "tasks": list(tasks),
                "limit": limit,
                "offset": offset,
            },
            "results": result["results"],
            "higher_is_better": result["higher_is_better"],
            "visual": {name: _means(lines) for name, lines in samples.items()},
            "samples": {name: len(lines) for name, lines in samples.items()},
            "failures": failures,
        }
        with writing(folder):
            for name, lines in samples.items():
                replaced(folder / f"samples_{name}.jsonl", "".join(_json(one) + "\n" for one in lines))
            replaced(folder / RESULTS, _json(facts, indent=1) + "\n")
        return json.loads(_json(facts))

    def _failures(self) -> list[str]:
        """Of all processes."""
        if not torch.distributed.is_initialized():
            return list(self.lm.failures)
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, list(self.lm.failures))
        return [one for some in found for one in some]

    def samples(self, folder: Path, task: str) -> list[dict[str, Any]]:
        """Lines of samples_<task>.jsonl."""
        return [json.loads(line) for line in (folder / f"samples_{task}.jsonl").read_text().splitlines()]

    def close(self) -> None:
        """Lets the model go."""
        self.lm.keeps_model = False
        self.model = self.processor = None
        self.lm.clean()


def opened(base: str, base_args: dict[str, Any], batch_size: int = 1, **options: Any) -> Session:
    """A `Session`."""
    return Session(base, base_args, batch_size=batch_size, **options)


def versions() -> dict[str, str]:
    """What answers depend on besides their settings; "code" is a hash of the policies and of what runs them."""
    packages = {
        "tokenprune": "tokenprune-vlm",
        "lmms-eval": "lmms-eval",
        "torch": "torch",
        "transformers": "transformers",
    }
    files = [file for one in (tokenprune, adapters) for file in sorted(Path(one.__file__).parent.rglob("*.py"))]
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    found = {name: metadata.version(one) for name, one in packages.items()}
    return {"python": platform.python_version(), **found, "code": code}


def weights(arguments: dict[str, Any]) -> str:
    """A hash of names, sizes and times of the files in folders that a base's arguments name; "" of none."""
    folders = [Path(value) for value in arguments.values() if isinstance(value, str) and Path(value).is_dir()]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for one in folders for file in _files(one)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16] if facts else ""


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


@contextmanager
def _sentence(task: str) -> Iterator[None]:
    """Whatever a task's own code or data raise, in one sentence."""
    try:
        yield
    except TokenPruneError:
        raise
    except Exception as error:
        raise InputError(
            f"tasks={task!r} cannot be loaded ({said(error)}): check that its data is here, or can be fetched."
        ) from error


def _leaves(found: dict) -> Iterator[tuple[str, Any]]:
    """Tasks of nested groups."""
    for name, one in found.items():
        if isinstance(one, dict):
            yield from _leaves(one)
        else:
            yield str(name), one[1] if isinstance(one, tuple) else one


def _samples(logged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of the documents. Tasks with several filters log each document once for each: the first one's."""
    lines: dict[int, dict[str, Any]] = {}
    for one in logged:
        lines.setdefault(one["doc_id"], _sample(one))
    return [lines[doc] for doc in sorted(lines)]


def _sample(logged: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a document that lmms-eval logs."""
    logged = dict(logged)
    counts = next((one for one in logged.pop("token_counts") if one), {})
    visual = {name.removeprefix("visual_"): value for name, value in counts.items() if name.startswith("visual_")}
    for name in ("arguments", "resps", "doc_hash", "input_media"):
        logged.pop(name, None)
    logged["target"] = str(logged["target"])
    return {**logged, "visual": visual or None}


def _means(lines: list[dict[str, Any]]) -> dict[str, float] | None:
    """Over documents with pictures."""
    seen = [line["visual"] for line in lines if line["visual"]]
    if not seen:
        return None
    return {name: sum(one[name] for one in seen) / len(seen) for name in ("kept", "total")}


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)

"""The training loop of all trained modules, on accelerate.

The base model is frozen and none of this loop's business: a step is a function that answers losses. Batches and random
numbers depend on the number of the step alone, and what is saved has every number that the next step depends on, so
that a training that was stopped goes on bit for bit as if it had not been (same machine, threads and processes).
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InvalidArgumentError, TrainingError
from ..predictors import Predictor

STATE, LOG, FACTS, CURVE = "training.safetensors", "log.jsonl", "training.json", "loss.png"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW

# (number of the batch, share of the training that is over) -> losses; "loss" is what is minimised
Step = Callable[[int, float], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast.

    Attributes:
        steps: of the optimiser.
        rate: highest learning rate; rises over the first `warmup` of the steps and falls to 0 as a cosine.
        cycles: (share of the steps, share of the rate) of every time that it does so.
        clip: largest gradient norm.
        accumulate: batches of a step, in every process.
        save_every: steps.
        bf16: autocast to bfloat16; weights and moments of the module stay float32.
    """

    steps: int
    rate: float = 1e-3
    warmup: float = 0.05
    cycles: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    seed: int = 0
    save_every: int = 50
    bf16: bool = False

    def __post_init__(self):
        for name, least in (("steps", 1), ("accumulate", 1), ("save_every", 1)):
            if getattr(self, name) < least:
                raise InvalidArgumentError(f"{name}={getattr(self, name)!r} is below {least}: give at least {least}.")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidArgumentError(f"{name}={getattr(self, name)!r} is no positive number: give one.")

    def rate_at(self, step: int) -> float:
        ends = [math.ceil(share * self.steps - 1e-6) for share in accumulate(share for share, _ in self.cycles)]
        cycle = next(number for number, end in enumerate(ends) if step < end)
        first, last, height = [0, *ends][cycle], ends[cycle], self.cycles[cycle][1]
        warm = max(1, round(self.warmup * (last - first)))
        if step < first + warm:
            return height * self.rate * (step - first + 1) / warm
        return height * self.rate * 0.5 * (1 + math.cos(math.pi * (step - first - warm) / max(1, last - first - warm)))


def train(module: Predictor, step: Step, plan: Plan, folder: Path, *, about: dict[str, Any] | None = None) -> dict:
    """Train a module in place, and save it in a folder, where an earlier run of the same settings goes on.

    Args:
        module: in float32, on the device of the base model.
        step: answers the losses of a batch; is called under autocast where `plan.bf16`.
        about: settings of the data and the losses, for JSON: what two runs must share for one to go on.

    Returns:
        What training.json has: the settings, seconds, parameters, bytes beside the frozen model, last losses.

    Raises:
        TrainingError: a loss or a gradient is NaN or infinite, or the folder has a run of other settings. What was
            saved last stays.
    """
    device = next(module.parameters()).device
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if plan.bf16 else "no")
    settings = {**asdict(plan), **(about or {}), "kind": module.kind, "processes": accelerator.num_processes}
    del settings["save_every"]
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.rate, weight_decay=plan.weight_decay)
    run = _Run(module, optimizer, folder, settings, writes=accelerator.is_main_process)
    module.train()
    begun = run.resume()
    before, started, spent = _memory(device), time.perf_counter(), run.seconds
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(module.kind, total=plan.steps, completed=begun)
        for number in range(begun, plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.rate_at(number)
            losses = _one(module, step, plan, accelerator, optimizer, number, folder)
            run.seconds = spent + time.perf_counter() - started
            run.note(number, losses)
            if (number + 1) % plan.save_every == 0 or number + 1 == plan.steps:
                run.save(number + 1)
            bar.update(task, completed=number + 1, description=f"{module.kind} {losses['loss']:.4f}")
    module.eval()
    extra = run.bytes + max(0, _memory(device, peak=True) - before)
    return run.finish(plan.steps, extra)


def _one(module, step, plan, accelerator, optimizer, number, folder) -> dict[str, float]:
    """One step of the optimiser: the means of its losses over batches and processes."""
    found: dict[str, Tensor] = {}
    for part in range(plan.accumulate):
        batch = (number * plan.accumulate + part) * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(plan.seed * 1_000_003 + batch)
        with accelerator.autocast():
            losses = step(batch, number / plan.steps)
        accelerator.backward(losses["loss"].float() / plan.accumulate)
        for name, value in losses.items():
            found[name] = found.get(name, 0.0) + value.detach().float() / plan.accumulate
    if accelerator.num_processes > 1:
        for one in module.parameters():
            one.grad = accelerator.reduce(torch.zeros_like(one) if one.grad is None else one.grad, "mean")
        found = {name: accelerator.reduce(value, "mean") for name, value in found.items()}
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), plan.clip)
    losses = {name: float(value) for name, value in found.items()} | {"norm": float(norm)}
    bad = next((name for name, value in losses.items() if not math.isfinite(value)), None)
    if bad is not None:
        optimizer.zero_grad()
        what = "the norm of the gradient" if bad == "norm" else bad
        raise TrainingError(
            f"{what} is {losses[bad]} at step {number}, so nothing more is learnt; {folder} keeps what was saved last: "
            "lower the rate, or look at the data of that step."
        )
    optimizer.step()
    optimizer.zero_grad()
    return losses


class _Run:
    """The files of a training."""

    def __init__(self, module: Predictor, optimizer: torch.optim.AdamW, folder: Path, settings: dict, *, writes: bool):
        self.module, self.optimizer, self.folder, self.settings, self.writes = (
            module,
            optimizer,
            folder,
            settings,
            writes,
        )
        self.text, self.seconds, self.lines = json.dumps(settings, sort_keys=True), 0.0, []

    @property
    def bytes(self) -> int:
        """Of weights, gradients and moments."""
        return sum(one.numel() * one.element_size() for one in self.module.parameters()) * (2 + len(MOMENTS))

    def resume(self) -> int:
        """Take over what an earlier run left, and say how many steps it made."""
        file = self.folder / STATE
        if not file.exists():
            return 0
        try:
            with safe_open(file, "pt") as state:
                facts, tensors = state.metadata(), {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{file} cannot be read ({error}): delete it, or give another folder.") from None
        if facts["settings"] != self.text:
            old, new = json.loads(facts["settings"]), json.loads(self.text)
            names = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            raise TrainingError(
                f"{self.folder} has a training with other settings "
                f"({', '.join(f'{n}={old.get(n)!r} there, {new.get(n)!r} here' for n in names)}): give the same, or "
                "another folder."
            )
        done = int(facts["step"])
        with torch.no_grad():
            for name, one in self.module.named_parameters():
                one.copy_(tensors[name])
                state = {"step": torch.tensor(float(done))}
                for moment in MOMENTS:
                    state[moment] = tensors[f"{moment}/{name}"].to(one.device)
                self.optimizer.state[one] = state
            for name, one in self.module.named_buffers():
                one.copy_(tensors[name])
        self.seconds = float(facts["seconds"])
        if (log := self.folder / LOG).exists():
            self.lines = [line for line in map(json.loads, log.read_text().splitlines()) if line["step"] < done]
        return done

    def note(self, number: int, losses: dict[str, float]) -> None:
        self.lines.append({"step": number, **{name: round(value, 6) for name, value in losses.items()}})

    def save(self, done: int) -> None:
        """Everything that the next step depends on, and the module to be used; at once, or not at all."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: one.detach().cpu() for name, one in self.module.state_dict().items()}
        for name, one in self.module.named_parameters():
            state = self.optimizer.state.get(one, {})
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = state.get(moment, torch.zeros_like(one)).detach().cpu()
        part = self.folder / (STATE + ".part")
        facts = {"step": str(done), "settings": self.text, "seconds": f"{self.seconds:.1f}"}
        save_file({name: one.contiguous() for name, one in tensors.items()}, part, metadata=facts)
        part.replace(self.folder / STATE)
        self.module.save_pretrained(self.folder)
        (self.folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def finish(self, steps: int, extra: int) -> dict[str, Any]:
        facts = {
            **json.loads(self.text),
            "seconds": round(self.seconds, 1),
            "parameters": self.module.parameters_count,
            "extra_mib": round(extra / 2**20, 1),
            "last": {key: value for key, value in self.lines[-1].items() if key != "step"} if self.lines else {},
        }
        if self.writes:
            (self.folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
            self._draw()
        return facts

    def _draw(self) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            print(f"{CURVE} needs matplotlib (pip install matplotlib): {LOG} has the numbers.", file=sys.stderr)
            return
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        names = dict.fromkeys(name for line in self.lines for name in line if name not in ("step", "norm"))
        for name in names:
            points = [(line["step"], line[name]) for line in self.lines if name in line]
            steps, values = zip(*points, strict=True)
            axes.plot(steps, _smooth(values), label=name, lw=1.2)
        axes.set(xlabel="step", ylabel="loss, mean of the last 20 steps", title=self.module.kind)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.folder / CURVE, dpi=120)


def _smooth(values: Sequence[float], window: int = 20) -> list[float]:
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _memory(device: torch.device, peak: bool = False) -> int:
    """Bytes of the device in use; of a CPU, the most that the process ever had."""
    if device.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""Extra memory of selections among very many tokens, counted tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...errors import PolicyError
from ..allocations import MIB, Allocations
from .data import SELECTORS, features, projector_policies, ready, selections, visual_tokens
from .goals import Goal

TOKENS, KEPT, WIDTH = 16384, 512, 64
GRIDS = {"image": lambda n: (1, _side(n), n // _side(n)), "video": lambda n: (n // 1024, 32, 32)}
GOAL = Goal("peak_mib", "<=", 256, " MiB")


def _side(n: int) -> int:
    """The largest divisor of n that is not above its square root."""
    return next(side for side in range(int(n**0.5), 0, -1) if n % side == 0)


@torch.inference_mode()
def extra(call: Callable[[], Any], device: str) -> dict[str, float]:
    """MiB that a call holds at most beside what was there, its answer included.

    On a CPU it is counted from the tensors made; on CUDA it is what the allocator says, kernels' own buffers included.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return {"peak_mib": round((torch.cuda.max_memory_allocated() - before) / MIB, 2)}
    with Allocations() as memory:
        call()
    return {"peak_mib": round(memory.peak / MIB, 2)}


def measure(device: str, n: int = TOKENS, k: int = KEPT) -> list[dict[str, Any]]:
    """A row for every selector and every policy in front of the language model: one unit, k of n tokens.

    What a policy is given (features, tower, text) is there before and not counted.
    """
    rows = []
    x = features(1, n, WIDTH, device=device)
    for selector in SELECTORS:
        rows.append({"what": selector, "of": "selector", **extra(selections(selector, x, k)["public"], device)})
    del x
    for kind, grid in GRIDS.items():
        tokens = visual_tokens(1, n, WIDTH, grid=grid(n), device=device)
        for name, make in projector_policies(kind).items():
            policy = make(k)
            rows.append({"what": name, "of": kind, **_asked(policy, ready(policy, tokens), k, device)})
    for row in rows:
        row["goals"] = [GOAL.of(row)] if "peak_mib" in row else []
    return rows


def _asked(policy: Any, tokens: Any, k: int, device: str) -> dict[str, Any]:
    """A policy that cannot keep as few or as many as k of such tokens is said to."""
    try:
        return extra(lambda: policy.select(tokens, k), device)
    except PolicyError as error:
        return {"refused": str(error)}

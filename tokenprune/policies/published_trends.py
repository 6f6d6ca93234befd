"""Trends that the authors of Attention Debiasing published, as numbers.

Read off the weight vectors in `playground/data/weight/<method>/<benchmark>.npy` of intcomp/attention-bias @e75ebe7
(facts about LLaVA-1.5-7B and its 576 tokens per image): all vectors but FastV's are exp(-b j), j = 0..575, to 2e-15.
FastV has one vector for all benchmarks, the inverse of a cubic to 3e-9. Here for x = j / 575.
"""

from __future__ import annotations

from ..errors import InvalidArgumentError, nearest

STEPS = 575
BENCHMARKS = (
    *("gqa", "mmbench", "mmbench_cn", "mme", "mmvet"),
    *("pope", "scienceqa", "textvqa", "vizwiz", "vqav2"),
)
_PER_MILLE = {
    "himap": (2.172257, 1.609360, 1.479931, 2.041351, 1.702755, 2.253080, 1.707098, 1.478925, 1.971196, 2.214310),
    "pyramiddrop": (3.989270, 2.651868, 2.596662, 3.265562, 4.133642, 4.050629, 2.698494, 3.146734, 2.518913, 3.756001),
    "sparsevlm": (2.301304, 3.195687, 2.598938, 3.802761, 4.224821, 4.637037, 2.992411, 3.147614, 2.742035, 4.121102),
    "tokencarve": (1.668403, 1.295086, 1.112505, 1.469520, 1.696596, 1.714837, 1.179708, 1.180272, 1.430718, 1.696596),
}
# method -> benchmark -> b of exp(b x)
RATES = {
    method: {name: b * STEPS / 1000 for name, b in zip(BENCHMARKS, rates, strict=True)}
    for method, rates in _PER_MILLE.items()
}
# method -> (c1, c2, c3) of 1 + c1 x + c2 x^2 + c3 x^3
CUBICS = {"fastv": (3.01519760e-3 * STEPS, -1.45979083e-5 * STEPS**2, 2.56911352e-8 * STEPS**3)}


def published(method: str, benchmark: str | None = None) -> tuple[str, tuple[float, ...]]:
    """Kind and coefficients of a `Trend`; without a benchmark, the mean of the rates over all of them.

    Raises:
        InvalidArgumentError: none was published.
    """
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise InvalidArgumentError(
            f"benchmark={benchmark!r} is not one of {', '.join(BENCHMARKS)}{nearest(benchmark, BENCHMARKS)}."
        )
    if method in CUBICS:
        return "cubic", CUBICS[method]
    if method not in RATES:
        raise InvalidArgumentError(
            f"trend='published' has no curve of {method!r}, only of {', '.join(sorted([*CUBICS, *RATES]))}: give "
            "trend=None, a Trend, or the path of one from `tokenprune train debias`."
        )
    rates = RATES[method]
    return "exponential", (sum(rates.values()) / len(rates) if benchmark is None else rates[benchmark],)

"""Triton kernels of the greedy selectors: interpreted on the CPU beside the plain loops, and compiled for real GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tokenprune.ops import kernels, plain
from tokenprune.ops.kernels import determinant, facility, launch

CUDA = torch.device("cuda", 0)
BOTH = (False, True)  # all steps in one launch, or one launch a step


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0, shared=0.0):
    """Unit vectors; the larger `shared`, the more alike."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shared
    return x / x.norm(dim=-1, keepdim=True)


def gram(x):
    s = x @ x.mT
    s.diagonal(dim1=1, dim2=2).fill_(1.0)
    return s


def same_kinds(g, n, kinds):
    """[G, N, kinds] one-hot vectors, token i of kind i modulo `kinds`: exact products, and duplicates of all."""
    return torch.eye(kinds)[torch.arange(n) % kinds].expand(g, n, kinds)


def cases():
    """name -> (selector, one launch a step, arguments, keyword arguments), answer"""
    far, near, alike = unit(2, 140, 64), unit(3, 37, 16, seed=1, shared=0.7), same_kinds(2, 140, 5)
    quality = {x: rand(*x.shape[:2], seed=2) + 0.1 for x in (far, near)}
    some = torch.tensor([[0.5, 0.0, 2.0, 0.0, 1.0, 2.0, 0.0, 0.25, 1.0, 0.0, 0.0]])
    few = same_kinds(1, 11, 4)
    for apart in BOTH:
        way = "stepwise" if apart else "fused"
        for name, x, k in (("far", far, 7), ("near", near, 12)):
            for more in ({}, {"quality": quality[x]}, {"quality": quality[x], "weight": 0.6, "eps": 0.5}):
                yield f"dpp {way} {name} {len(more)}", ("dpp", apart, (gram(x), k), more), plain.dpp(x, k, **more)
            f = gram(x)[:, :33] - 0.3  # columns may be negative; candidates are fewer than rows
            weight = quality[x][:, :33]
            expected = plain.coverage(lambda i, f=f: f.gather(1, i[..., None].expand(*i.shape, f.shape[2])), weight,
                                      f.shape[2], 5)  # fmt: skip
            yield f"coverage {way} {name}", ("coverage", apart, (f, weight, 5), {}), expected
        first = torch.arange(9).expand(2, 9)  # every kind once, then only duplicates
        yield f"dpp {way} alike", ("dpp", apart, (gram(alike), 9), {}), first
        more = {"eps": 1.0}  # which leaves something of the chosen
        yield f"dpp {way} eps", ("dpp", apart, (gram(alike), 9), more), first
        yield f"coverage {way} alike", ("coverage", apart, (alike[:, :22], torch.ones(2, 22), 9), {}), first
        for k in (1, 11):
            more = {"quality": some}
            yield f"dpp {way} zeros {k}", ("dpp", apart, (gram(few), k), more), plain.dpp(few, k, **more)
        yield f"dpp {way} single", ("dpp", apart, (torch.ones(2, 1, 1), 1), {}), torch.zeros(2, 1)
        yield f"coverage {way} single", ("coverage", apart, (torch.ones(2, 1, 3), torch.ones(2, 1), 1), {}), [[0], [0]]
        yield f"coverage {way} all", ("coverage", apart, (few, some, 11), {}), [[2, 5, 4, 7, 0, 1, 3, 6, 8, 9, 10]]
    for name, x, k in (("far", far, 30), ("near", near, 37)):
        for more in ({}, {"quality": quality[x]}, {"first": torch.arange(len(x)) + 5}):
            yield f"max_min {name} {list(more)}", ("max_min", False, (gram(x), k), more), plain.max_min(x, k, **more)
    start = {"first": torch.tensor([0, 7])}
    turn = [list(range(9)), [7, 0, 1, 3, 4, 2, 5, 6, 8]]
    yield "max_min alike", ("max_min", False, (gram(alike), 9), start), turn
    yield "max_min zeros", ("max_min", False, (gram(few), 11), {"quality": some}), plain.max_min(few, 11, quality=some)
    yield "max_min single", ("max_min", False, (torch.ones(2, 1, 1), 1), {}), [[0], [0]]
    # 1 is a duplicate of 0 like 2, and must come first in spite of its rounding
    over = torch.tensor([[[1, 1.0000001, 1], [1.0000001, 1, 1], [1, 1, 1]]])
    yield "max_min over", ("max_min", False, (over, 3), {"quality": torch.tensor([[2.0, 1, 1]])}), [[0, 1, 2]]
    # rounded apart: 0 and 1 are each other's nearest all the same
    apart = torch.tensor([[[1, 0.5000001, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0.9], [0, 0, 0.9, 1]]])
    yield "max_min mutual", ("max_min", False, (apart, 1), {}), [[0]]


CASES = {name: (call, expected) for name, call, expected in cases()}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """name -> what the interpreted kernel answers"""
    calls, answers = (tmp_path_factory.mktemp("kernels") / name for name in ("calls", "answers"))
    torch.save([call for call, _ in CASES.values()], calls)
    done = subprocess.run(
        [sys.executable, "-m", "tests.interpreted", calls, answers],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-4000:]
    return dict(zip(CASES, torch.load(answers, weights_only=True), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_kernels_choose_as_the_plain_loops_do(interpreted, name):
    assert interpreted[name].dtype == torch.long
    assert interpreted[name].tolist() == torch.as_tensor(CASES[name][1]).long().tolist()


class Device:
    """What Triton's compiler asks a GPU for."""

    def __init__(self, capability):
        self.get_current_device = lambda: capability
        self.get_current_stream = lambda device: 0
        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """(grid, compiled kernel) of every launch; nothing is run."""
    made, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        made.append((grid, run(self, *args, grid=grid, warmup=True, **kwargs)))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        yield made


@pytest.mark.parametrize("apart", BOTH)
@pytest.mark.parametrize(("capability", "n"), [(80, 576), (90, 576), (90, 601), (90, 1)])
def test_kernels_compile_for_gpus(launches, monkeypatch, capability, n, apart):
    monkeypatch.setattr(driver, "_active", Device(capability))
    monkeypatch.setattr(determinant, "stepwise", lambda *sizes: apart)
    monkeypatch.setattr(facility, "stepwise", lambda *sizes: apart)
    k, similarity, ones = min(n, 20), torch.ones(2, n, n), torch.ones(2, n)
    steps = (k + 1, 1) if apart else (1, 1)  # launches and the kernels among them
    for choose, expected in (
        (lambda: kernels.dpp(similarity, k, quality=ones, weight=1), steps),
        (lambda: kernels.coverage(similarity, ones, k), steps),
        (lambda: kernels.max_min(similarity, k), (2, 2)),
    ):
        launches.clear()
        choose()
        compiled = {kernel for _, kernel in launches}
        assert (len(launches), len(compiled)) == expected
        assert launches[-1][0][0] == 2
        for asm in (kernel.asm for kernel in compiled):
            assert asm["cubin"]
            assert "tf32" not in asm["ptx"]
            assert "mma" not in asm["ptx"]
            assert n != 576 or "ld.global.v4" in asm["ptx"]  # 16 bytes a thread


@pytest.mark.parametrize(
    ("units", "n", "k", "expected"),
    [(1, 576, 64, False), (5, 576, 128, False), (1, 2928, 320, True), (1, 4096, 512, True), (28, 4096, 512, False)],
)
def test_one_launch_a_step_where_one_multiprocessor_is_too_slow(units, n, k, expected):
    assert launch.stepwise(units, 2 * n * k) == expected


@pytest.fixture
def cuda(monkeypatch):
    """As if there were a GPU that can do everything."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "probe", lambda device: None)
    kernels.available.cache_clear()
    yield monkeypatch
    kernels.available.cache_clear()


def test_kernels_are_available_on_a_gpu_that_runs_them(cuda, recwarn):
    assert kernels.available(CUDA)
    assert not kernels.available(torch.device("cpu"))
    assert not kernels.available(torch.device("mps"))
    assert not recwarn.list


def no_compiler(device):
    raise RuntimeError("Failed to find\nC compiler.")


@pytest.mark.parametrize(
    ("owner", "name", "value", "reason"),
    [
        (torch.version, "hip", "6.4", "NVIDIA"),
        (torch.cuda, "get_device_capability", lambda device: (7, 5), "this GPU has 7.5"),
        (torch.ops.aten, "bmm", torch.ops.aten.add, "PyTorch 2.8"),
        (launch, "probe", no_compiler, r"RuntimeError: Failed to find C compiler\."),
    ],
)
def test_a_gpu_without_kernels_is_told_once(cuda, owner, name, value, reason):
    cuda.setattr(owner, name, value)
    with pytest.warns(UserWarning, match=rf"step by step in PyTorch on cuda:0.*{reason}") as warned:
        answers = [kernels.available(CUDA) for _ in range(2)]
    assert answers == [False, False]
    assert len(warned) == 1


def test_without_triton_the_package_works_and_says_so(cuda):
    cuda.setitem(sys.modules, "triton", None)
    for module in ("launch", "determinant", "dispersion", "facility"):
        cuda.delitem(sys.modules, f"tokenprune.ops.kernels.{module}")
        cuda.delattr(kernels, module)
    with pytest.warns(UserWarning, match="ModuleNotFoundError: .*triton"):
        assert not kernels.available(CUDA)


@pytest.fixture
def on_cpu(monkeypatch):
    """The product of the CUDA library, which keeps half precision's products exact and sums in float32."""

    def product(x, y):
        assert x.dtype == y.dtype
        assert x.dtype in (torch.float16, torch.bfloat16)
        return x.float() @ y.float().mT

    monkeypatch.setattr(kernels, "_product", product)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_similarity_is_the_cosine_in_float32(on_cpu, dtype):
    x = (unit(2, 30, 64) * (rand(2, 30, 1, seed=1) * 50 + 0.1)).to(dtype)
    x[0, 3] = 0.0
    x[1, 7] = x[1, 20]
    s = kernels.similarity(x)
    exact = torch.nn.functional.normalize(x.double(), dim=-1)
    assert s.dtype == torch.float32
    assert (s - exact @ exact.mT).abs().amax() < 1e-6
    assert s[0].diagonal().tolist() == [float(i != 3) for i in range(30)]
    assert s[1].diagonal().eq(1.0).all()
    assert not s[0, 3].any()
    assert torch.equal(s[1, 7], s[1, 20].index_copy(0, torch.tensor([7, 20]), s[1, 20, [20, 7]]))


def test_similarity_takes_a_scale(on_cpu):
    x, scale = unit(2, 9, 16), rand(2, 9)
    expected = (x.double() @ x.double().mT) * scale[:, :, None] * scale[:, None]
    assert (kernels.similarity(x, scale) - expected).abs().amax() < 1e-7


def test_products_of_half_precision_answer_float32():
    """The signature, which PyTorch checks without a GPU."""
    s = kernels.similarity(torch.empty(2, 9, 16, dtype=torch.float16, device="meta"))
    assert s.shape == (2, 9, 9)
    assert s.dtype == torch.float32


def test_every_launch_has_its_steps():
    assert launch.ranges(3, False) == [(0, 4)]
    assert launch.ranges(3, True) == [(0, 1), (1, 2), (2, 3), (3, 4)]

"""What the bench measures: shapes of the published sizes, an oracle that gives the pruned model's logits, in turns."""

import weakref
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from tokenprune import wrap
from tokenprune.errors import InvalidArgumentError, UnsupportedPolicyError
from tokenprune.eval import specs
from tokenprune.eval.bench import oracle
from tokenprune.eval.bench.build import from_shape
from tokenprune.eval.bench.measure import Bench
from tokenprune.eval.bench.shapes import SHAPES

PARAMETERS = {  # as the published checkpoints count them
    "llava-1.5-7b": 7_063_427_072,
    "llava-next-7b": 7_063_431_168,
    "onevision-7b": 8_030_348_832,
    "internvl3-8b": 7_944_373_760,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-8b": 8_767_123_696,
}
SCALE = 0.05


COUNTS = {name: shape.tokens for name, shape in SHAPES.items()}
TOKENS = {"llava-1.5-7b": 576, "llava-next-7b": 2928, "onevision-7b": 3699, "internvl3-8b": 1280,
          "qwen2.5-vl-7b": 1296, "qwen3-vl-8b": 1296}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def smaller_pictures():
    """Where the picture may have any size, its tower is the most of what these tests would wait for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("qwen2.5-vl-7b", "qwen3-vl-8b"):
            patch.setitem(SHAPES, name, replace(SHAPES[name], tokens=256))
        yield


def made(name, dtype="float32", new=4):
    subject = from_shape(name, scale=SCALE, dtype=dtype, device="cpu", attention="sdpa", text=16, seed=0)
    return Bench(subject, new=new)


@pytest.fixture(scope="module")
def llava(smaller_pictures):
    return made("llava-1.5-7b")


@pytest.fixture(scope="module")
def qwen3(smaller_pictures):
    return made("qwen3-vl-8b")


def test_visual_tokens():
    """Before any are made smaller here."""
    assert COUNTS == TOKENS
    assert PARAMETERS.keys() == TOKENS.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_as_many_parameters_as_published(name):
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(SHAPES[name].config(SHAPES[name], 1.0))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_finite_and_the_prompt_has_all_visual_tokens(name):
    bench = made(name)
    assert all(parameter.isfinite().all() for parameter in bench.model.parameters())
    row = bench.probe([], 1)
    assert (row.kept, row.total) == (SHAPES[name].tokens,) * 2
    assert bench.subject.one["input_ids"].shape[1] == 16 + SHAPES[name].tokens + len(SHAPES[name].separate)


@torch.inference_mode()
def pruned_logits(bench, text, batch):
    with wrap(bench.model, specs.policies(text)):
        return bench.model(**bench.subject.batch(batch)).logits[:, -1]


def hooks(model: nn.Module):
    """Those of ours; transformers has some to note hidden states."""
    found = (h for m in model.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values()))
    return [hook for hook in found if hook.__module__.startswith("tokenprune")]


def test_hooks_are_seen(llava):
    with wrap(llava.model, "random", keep=8):
        assert hooks(llava.model)


@pytest.mark.parametrize(
    ("name", "text", "batch"),
    [
        ("llava-1.5-7b", "cdpruner(keep=0.25)", 2),
        ("llava-1.5-7b", "visionzip(keep=100, contextual=10)", 1),
        ("llava-1.5-7b", "fastv(keep=0.25)", 2),
        ("llava-1.5-7b", "pyramiddrop", 1),
        ("llava-1.5-7b", "divprune(keep=200)+fastv(keep=0.25)", 1),
        ("llava-next-7b", "random(keep=0.1)", 1),
        ("onevision-7b", "random(keep=0.1)", 1),
        ("internvl3-8b", "random(keep=0.25)", 1),
        ("qwen2.5-vl-7b", "random(keep=0.25)", 1),
        ("qwen2.5-vl-7b", "fastv(keep=0.25)", 1),
        ("qwen3-vl-8b", "random(keep=0.25)", 1),
    ],
)
def test_the_oracle_gives_the_logits_of_the_pruned_model(name, text, batch):
    bench = made(name)
    row = bench.probe(specs.policies(text), batch)
    assert row.kept < row.total
    assert row.without == ""
    assert not hooks(bench.model)
    assert "get_image_features" not in vars(bench.parts.outer)
    with torch.inference_mode():
        answer = row.oracle()
    torch.testing.assert_close(answer, pruned_logits(bench, text, batch), atol=1e-4, rtol=0)


def test_the_oracle_runs_the_tower_and_as_many_tokens_as_are_kept(llava):
    row = llava.probe(specs.policies("random(keep=64)"), 1)
    seen = []
    tower, layer = llava.parts.outer.vision_tower, llava.parts.decoder.layers[-1]
    noting = [
        tower.register_forward_hook(lambda *_: seen.append("tower")),
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1])),
    ]
    try:
        with torch.inference_mode():
            row.oracle()
    finally:
        for one in noting:
            one.remove()
    assert seen == ["tower", 64 + 16]


@pytest.mark.parametrize(
    ("text", "why"), [("sparsevlm(keep=0.25)", oracle.MERGED), ("tome(r=8)", oracle.INSIDE)], ids=["layers", "tower"]
)
def test_no_oracle_where_merged(llava, text, why):
    row = llava.probe(specs.policies(text), 1)
    assert (row.oracle, row.without) == (None, why)


def test_no_oracle_where_its_logits_are_others(qwen3):
    row = qwen3.probe(specs.policies("fastv(keep=0.25)"), 1)
    assert (row.oracle, row.without) == (None, oracle.EXCHANGE)
    assert row.apart > 0.1


def test_rows_are_found_bit_for_bit():
    whole = torch.randn(2, 7, 5)
    places = torch.tensor([[0, 3, 6], [1, 2, 4]])
    left = whole.gather(1, places[..., None].expand(-1, -1, 5))
    assert torch.equal(oracle.found(whole, left), places)
    assert torch.equal(oracle.found(whole.bfloat16(), left.bfloat16()), places)
    left[1, 1, 0] = left[1, 1, 0].nextafter(torch.tensor(9.0))
    assert oracle.found(whole, left) is None


@pytest.mark.parametrize("text", ["none", "cdpruner(keep=64)", "fastv(keep=64)"])
@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen3-vl-8b"])
def test_what_is_timed_answers_what_generate_answers(name, text, request):
    bench = request.getfixturevalue({"llava-1.5-7b": "llava", "qwen3-vl-8b": "qwen3"}[name])
    policies, inputs, said = specs.policies(text), bench.subject.batch(2), []
    with wrap(bench.model, policies or "none"), torch.inference_mode():
        words = bench.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        head = bench.model.lm_head.register_forward_hook(lambda module, args, out: said.append(out[:, -1].argmax(-1)))
        bench._answer(inputs)
        head.remove()
    assert torch.equal(torch.stack(said, 1), words[:, -4:])


@pytest.mark.parametrize("text", ["cdpruner(keep=64)", "fastv(keep=64)"])
def test_cache_bytes_are_those_estimated(llava, text):
    row = llava.probe(specs.policies(text), 2)
    assert row.kept == 64
    assert row.kv_bytes == row.report.cost()["kv_bytes_pruned"] < row.report.cost()["kv_bytes_dense"]


def test_rows_and_oracles_take_turns(llava, monkeypatch):
    order = []
    for name in ("_turn", "_split", "_ideal"):
        plain = getattr(Bench, name)
        monkeypatch.setattr(Bench, name, lambda self, *a, plain=plain, name=name: order.append(name) or plain(self, *a))
    rows = [llava.probe([], 1), *(llava.probe(specs.policies(f"{one}(keep=64)"), 1) for one in ("random", "sparsevlm"))]
    ticks = []
    llava.measure(rows, 2, lambda: ticks.append(1))
    once = ["_turn", "_split", "_turn", "_ideal", "_split", "_turn", "_split"]
    assert order == 3 * once
    assert len(ticks) == 3 * len(once)
    assert [len(row.turns) for row in rows] == [len(row.splits) for row in rows] == [2, 2, 2]
    assert [len(row.ideal) for row in rows] == [0, 2, 0]
    assert all(split.selection > 0 for row in rows[1:] for split in row.splits)
    assert not hooks(llava.model)


def test_notes_are_moved_with_what_layers_share():
    shared, states = torch.zeros(2, 3), torch.zeros(4)
    layer = {"attention_mask": {"full_attention": shared}, "position_embeddings": (shared, states), "use_cache": True}
    noted = oracle.Noted(
        encoding={"args": (states,), "kwargs": {"image_sizes": [[1, 2]]}},
        decoder={"inputs_embeds": states, "deepstack_visual_embeds": [shared], "attention_mask": None},
        layers=[layer, dict(layer)],
        dropped={1: shared},
    )
    moved = noted.on("meta")
    mask = moved.dropped[1]
    assert mask.is_meta
    assert moved.encoding["args"][0].is_meta
    assert moved.encoding["kwargs"] == {"image_sizes": [[1, 2]]}
    assert moved.decoder["inputs_embeds"].is_meta
    assert moved.decoder["deepstack_visual_embeds"][0] is mask
    assert moved.decoder["attention_mask"] is None
    for one in moved.layers:
        assert one["attention_mask"]["full_attention"] is mask
        assert isinstance(one["position_embeddings"], tuple)
        assert one["position_embeddings"][1].is_meta
        assert one["use_cache"] is True
    assert noted.dropped[1].device.type == "cpu"


def test_notes_are_on_the_device_in_the_turn_of_their_oracle_only(llava, monkeypatch):
    order, copies = [], []
    on, call, now = oracle.Oracle.on, oracle.Oracle.__call__, Bench._now

    def noting(self, device):
        order.append(f"on {device}")
        made = on(self, device)
        copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr(oracle.Oracle, "on", noting)
    monkeypatch.setattr(oracle.Oracle, "__call__", lambda self: order.append("oracle") or call(self))
    monkeypatch.setattr(Bench, "_now", lambda self: order.append("clock") or now(self))
    monkeypatch.setattr(llava, "device", torch.device("cpu", 0))
    row = llava.probe(specs.policies("random(keep=64)"), 1)
    assert order == ["oracle", "on cpu"]
    assert row.oracle is copies.pop()()
    order.clear()
    with torch.inference_mode():
        llava._ideal(row.oracle)
    assert order == ["on cpu:0", "clock", "oracle", "clock"]
    assert copies[0]() is None


def test_low_precision_has_an_oracle_too():
    row = made("llava-1.5-7b", "bfloat16").probe(specs.policies("fastv(keep=0.25)"), 1)
    assert row.oracle is not None


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("cdpruner(keep=577)", InvalidArgumentError, "keep=577 is above the 576 visual tokens"),
        ("dycoke(keep=0.5)", UnsupportedPolicyError, "'dycoke' prunes videos only"),
        ("fastv(keep=0.5, layer=9)", InvalidArgumentError, "layer=9"),
    ],
)
def test_what_cannot_be_measured_is_said_before(llava, text, error, words):
    with pytest.raises(error, match=words):
        llava.probe(specs.policies(text), 1)
    assert not hooks(llava.model)

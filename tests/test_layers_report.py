"""What a report says about pruning inside the language model."""

import json

import pytest
import torch

import tokenprune
from tests.families import BY_NAME, LLAVA, QWEN2_5_VL
from tests.test_report import unit_report
from tokenprune import DivPrune, FastV, FrameFusion, PyramidDrop, SparseVLM
from tokenprune.report import DecoderShape, EventReport, Report

STEPPED = PyramidDrop(layers=(1, 3), keeps=(0.5, 0.25))


def pruned(policy, *, family=LLAVA, images=(2, 1), **kwargs):
    """(inputs, output, report) of one forward."""
    model, inputs = family.model(), family.inputs(images)
    with tokenprune.wrap(model, policy, **kwargs) as handle:
        return inputs, model(**inputs), handle.report()


class TestEvents:
    def test_one(self):
        inputs, _, report = pruned(FastV(layer=2, keep=4))
        n = inputs["attention_mask"].sum(1).tolist()
        assert (report.stage, report.positions) == ("layer", "original")
        assert report.lengths == [(n[0], n[0]), (n[1], n[1])]  # the first layer reads all
        event = EventReport(policy="fastv", layer=2, scored=1, kept=12, lengths=[n[0] - 64, n[1] - 32])
        assert report.events == [event]
        assert [(unit.kept, unit.total, len(unit.indices)) for unit in report.units] == [(4, 36, 4)] * 3
        assert "  layer 2  fastv kept 12/108 by the attention of layer 1" in str(report).splitlines()

    def test_several(self):
        inputs, _, report = pruned(STEPPED)
        n = inputs["attention_mask"].sum(1).tolist()
        assert report.positions == "compact"
        assert [(one.layer, one.scored, one.kept) for one in report.events] == [(1, 1, 54), (3, 3, 27)]
        assert [one.lengths for one in report.events] == [[n[0] - 36, n[1] - 18], [n[0] - 54, n[1] - 27]]
        assert report.kept == 27

    def test_scored_by_none(self):
        _, _, report = pruned("random-layers", keep=4)
        assert {one.scored for one in report.events} == {None}
        assert "attention of layer" not in str(report)

    def test_events_that_ask_for_nothing_do_not_happen(self):
        _, _, report = pruned(PyramidDrop(layers=(1, 3), keeps=(1.0, 0.25)))
        assert [one.layer for one in report.events] == [3]
        _, _, report = pruned("fastv", keep=1000)
        assert report.events == []
        assert (report.kept, report.total) == (108, 108)

    def test_merged_tokens_are_counted(self):
        _, _, report = pruned(SparseVLM(layers=(0, 1, 2), keeps=(0.5, 0.4, 0.3)))
        for unit in report.units:
            assert len(unit.indices) == unit.kept == 11
            carried = unit.source[unit.source >= 0]
            assert set(carried.tolist()) == set(range(unit.kept))
            assert len(carried) > unit.kept  # some stand for several
        assert report.events[-1].kept == report.kept == 33

    def test_of_two_forwards_the_last(self):
        model = LLAVA.model()
        with tokenprune.wrap(model, FastV(keep=4)) as handle:
            model(**LLAVA.inputs((2, 1)))
            first = handle.report()
            model.generate(**LLAVA.inputs((1,)), max_new_tokens=3)  # decode steps are none with visual tokens
            assert [one.kept for one in handle.report().events] == [4]
            assert [one.kept for one in first.events] == [12]
            handle.enabled = False
            model(**LLAVA.inputs((2, 1)))
            assert [one.kept for one in handle.report().events] == [4]


class TestNumbers:
    def test_cost_by_hand(self):
        inputs, _, report = pruned(STEPPED)
        d, m, q, kv = 64, 96, 64, 32

        def flops(n):
            return 2 * (2 * n * d * q + 2 * n * d * kv + 2 * n * n * q + 3 * n * d * m)

        samples = [(n, n - 18 * images, n - 27 * images) for n, images in zip([85, 46], (2, 1), strict=True)]
        assert inputs["attention_mask"].sum(1).tolist() == [85, 46]
        dense = sum(4 * flops(n) for n, _, _ in samples)
        after = sum(flops(n) + 2 * flops(half) + flops(quarter) for n, half, quarter in samples)
        held = sum(n + 2 * half + quarter for n, half, quarter in samples)
        assert report.cost() == {
            "prefill_flops_dense": dense,
            "prefill_flops_pruned": after,
            "kv_bytes_dense": 4 * 131 * 2 * kv * 4,
            "kv_bytes_pruned": held * 2 * kv * 4,
        }

    def test_the_cache_is_as_large_as_said(self):
        model, inputs = LLAVA.model(), LLAVA.inputs((1,))
        with tokenprune.wrap(model, STEPPED) as handle:
            cache = model(**inputs, use_cache=True).past_key_values
        held = sum(one.keys.nbytes + one.values.nbytes for one in cache.layers)
        assert handle.report().cost()["kv_bytes_pruned"] == held

    @pytest.mark.parametrize("timing", [False, True])
    def test_dict_is_json(self, timing):
        _, _, report = pruned([DivPrune(keep=24), STEPPED], timing=timing)
        data = json.loads(json.dumps(report.to_dict()))
        assert [one["layer"] for one in data["events"]] == [1, 3]
        fields = {"policy", "layer", "scored", "kept", "lengths", "forgotten", "event_ms", "saved_ms"}
        assert set(data["events"][0]) == fields
        assert (data["events"][0]["event_ms"] is None) != timing
        assert data["cost"] == report.cost()


class TestTiming:
    @pytest.mark.parametrize("policy", [FastV(keep=4), STEPPED, SparseVLM(layers=(0, 1, 2), keeps=(0.5, 0.3, 0.2))])
    def test_results_are_the_same(self, policy):
        _, plain, untimed = pruned(policy)
        _, out, report = pruned(policy, timing=True)
        assert torch.equal(out.logits, plain.logits)
        assert [unit.indices.tolist() for unit in report.units] == [unit.indices.tolist() for unit in untimed.units]
        assert all(one.event_ms is None and one.saved_ms is None for one in untimed.events)
        assert all(one.event_ms > 0 and one.saved_ms is not None for one in report.events)

    def test_what_is_timed(self, monkeypatch):
        """Scores and selection count as the event; the attention they are read from as its layer."""
        now = [0.0]
        monkeypatch.setattr("tokenprune.stages.runtime.time.perf_counter", lambda: now[0])

        class Slow(FastV):
            def score(self, attention, event):
                now[0] += 0.003
                return super().score(attention, event)

            def select(self, tokens, k):
                now[0] += 0.004
                return super().select(tokens, k)

        model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
        for i, layer in enumerate(model.get_decoder().layers):

            def run(*args, took=(0.010, 0.020, 0.005, 0.005)[i], **kwargs):
                now[0] += took

            layer.register_forward_hook(run)
        with tokenprune.wrap(model, Slow(layer=2, keep=4), timing=True) as handle:
            model(**inputs)
        (event,) = handle.report().events
        assert event.event_ms == pytest.approx(7)
        assert event.saved_ms == pytest.approx(2 * (15 - 5))  # two layers behind it, 15 ms each before

    def test_nothing_is_known_of_what_an_event_before_the_first_layer_saved(self):
        family = BY_NAME["llava_onevision-video"]
        _, _, report = pruned(FrameFusion(keep=0.3), family=family, timing=True)
        assert [(one.layer, one.event_ms is None, one.saved_ms is None) for one in report.events] == [
            (0, False, True),
            (1, False, False),
        ]

    def test_verdict(self):
        shape = DecoderShape(layers=4, hidden=8, intermediate=16, query=8, key_value=4, dtype_bytes=4)

        def line(event_ms, saved_ms):
            events = [EventReport("fastv", 2, 1, 2, [8], event_ms=event_ms, saved_ms=saved_ms)]
            report = Report("fastv", "layer", "original", [unit_report()], [(10, 10)], events, shape=shape)
            return next(text for text in str(report).splitlines() if text.startswith("  layer 2"))

        start = "  layer 2  fastv kept 2/4 by the attention of layer 1"
        assert line(None, None) == start
        assert line(1.0, None) == f"{start}, took 1.00 ms"
        assert line(1.0, 2.5) == f"{start}, took 1.00 ms, saved about 2.50 ms"
        costs = ": costs more than it saves on this shape"
        assert line(2.0, 1.0) == f"{start}, took 2.00 ms, saved about 1.00 ms{costs}"
        assert line(2.0, -1.0).endswith(f"saved about -1.00 ms{costs}")


class TestComposition:
    @pytest.mark.parametrize("family", [LLAVA, QWEN2_5_VL], ids=lambda family: family.name)
    def test_both_stages(self, family):
        inputs, _, report = pruned([DivPrune(keep=12), FastV(layer=2, keep=4)], family=family)
        n = inputs["attention_mask"].sum(1).tolist()
        total = [sum(unit.total for unit in report.units if unit.sample == b) for b in range(2)]
        between = [n[0] - total[0] + 24, n[1] - total[1] + 12]
        assert report.stage == "projector + layer"
        assert "DivPrune" in report.policy
        assert "FastV" in report.policy
        assert report.lengths == list(zip(n, between, strict=True))
        assert [one.lengths for one in report.events] == [[between[0] - 16, between[1] - 8]]
        assert [(unit.kept, len(unit.indices)) for unit in report.units] == [(4, 4)] * 3
        assert all((unit.source >= 0).sum() == 4 for unit in report.units)

    def test_what_stays_was_kept_in_front(self):
        policy = DivPrune(keep=12)
        _, _, front = pruned(policy)
        _, _, report = pruned([policy, FastV(layer=2, keep=4)])
        for unit, before in zip(report.units, front.units, strict=True):
            assert set(unit.indices.tolist()) < set(before.indices.tolist())

    def test_shares_inside_are_of_what_was_kept_in_front(self):
        _, _, report = pruned([DivPrune(keep=12), FastV(layer=2, keep=0.25)])
        assert [unit.kept for unit in report.units] == [9] * 3

    def test_order_of_the_list_does_not_matter_between_stages(self):
        _, one, first = pruned([DivPrune(keep=12), FastV(layer=2, keep=4)])
        _, two, second = pruned([FastV(layer=2, keep=4), DivPrune(keep=12)])
        assert torch.equal(one.logits, two.logits)
        assert first.to_dict() == second.to_dict()

    def test_two_policies_inside(self):
        _, _, report = pruned([FastV(layer=1, keep=20), FastV(layer=3, keep=5)])
        assert [(one.layer, one.scored, one.kept) for one in report.events] == [(1, 0, 60), (3, 2, 15)]
        _, _, report = pruned([FastV(layer=2, keep=20), PyramidDrop(layers=(2,), keeps=(5,))])
        assert [(one.policy, one.layer, one.scored, one.kept) for one in report.events] == [
            ("fastv", 2, 1, 60),
            ("pyramiddrop", 2, 2, 15),
        ]
        assert report.positions == "original + compact"

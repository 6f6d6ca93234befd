"""Classes of lmms-eval with a pruned model: their own code answers, and what is noted is of the right document."""

from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from tokenprune import CDPruner, FastV, NotEngagedError, ProjectorPolicy, Random, Selection, UnsupportedPolicyError
from tokenprune.errors import InputError, InvalidArgumentError, UnknownPolicyError
from tokenprune.eval import shapes
from tokenprune.eval.lmms import model as plugin
from tokenprune.eval.lmms.journal import Journal
from tokenprune.eval.lmms.model import Recorded, TokenPrune, built
from tokenprune.eval.lmms.watch import _question, seen

COUNT = 7
ASKED: list[str] = []


class Base(lmms):
    """As the classes of lmms-eval are: sorts, batches, swallows errors."""

    def __init__(self, batch_size=3, pictures=1):
        super().__init__()
        self._model, self.processor = shapes.load()
        self.batch_size, self.pictures = int(batch_size), pictures
        self.calls = []

    @property
    def model(self):
        return self._model

    def generate_until(self, requests):
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].args[0]), i))
        answers = [""] * len(requests)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            contexts, hows, visual, ids, task, split = zip(*(requests[i].args for i in part), strict=True)
            documents = [self.task_dict[task[0]][split[0]][one] for one in ids]
            pictures = [visual[0](one) for one in documents]
            self.calls.append(list(ids))
            for how in hows:
                how.setdefault("temperature", 0)
                how.pop("until", None)
            text = ["<image>" * len(p) + " " + context for p, context in zip(pictures, contexts, strict=True)]
            flat = list(chain(*pictures))
            inputs = self.processor(text=text, images=flat or None, padding=True, return_tensors="pt")
            try:
                out = self.model.generate(**inputs, max_new_tokens=hows[0]["max_new_tokens"], do_sample=False)
                texts = self.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            except Exception:
                texts = [""] * len(part)
            for i, context, answer in zip(part, contexts, texts, strict=True):
                answers[i] = answer
                self.cache_hook.add_partial("generate_until", (context, hows[0]), answer)
        return answers

    def loglikelihood(self, requests):
        found = []
        for one in requests:
            context, target, visual, doc, task, split = one.args
            pictures = visual(self.task_dict[task][split][doc])
            text = "<image>" * len(pictures) + f" {context} {target}"
            inputs = self.processor(text=text, images=pictures or None, return_tensors="pt")
            loss = self.model(**inputs, labels=inputs["input_ids"]).loss
            found.append((float(loss), False))
        return found

    def generate_until_multi_round(self, requests):
        return [[answer] for answer in self.generate_until(requests)]


@dataclass(kw_only=True)
class Asking(ProjectorPolicy):
    """Notes what it is told the prompts ask."""

    needs = frozenset({"instruction"})

    def select(self, tokens, k):
        ASKED.extend(tokens.instruction)
        g, _ = tokens.shape
        return Selection.subset(torch.arange(k).expand(g, k))


@pytest.fixture(scope="module")
def documents():
    """Document i has i % 3 pictures."""
    samples = list(shapes.held_out(COUNT))
    return [{"id": i, "images": [s.image] * (i % 3), "question": s.question.text} for i, s in enumerate(samples)]


@pytest.fixture(scope="module")
def lm(documents):
    made = type("Base", (Recorded, Base), {"__module__": Base.__module__})()
    made.task_dict = {"shapes": {"test": documents}}
    return made


@pytest.fixture
def requests(documents):
    def pictures(document):
        return document["images"]

    return [
        Instance(
            request_type="generate_until",
            arguments=(
                one["question"],
                {"max_new_tokens": 2, "do_sample": False},
                pictures,
                one["id"],
                "shapes",
                "test",
            ),
            idx=0,
            metadata={"task": "shapes", "doc_id": one["id"], "repeats": 1},
        )
        for one in documents
    ]


def plain(lm, requests):
    """What the base's own code answers."""
    return Base.generate_until(lm, requests)


def texts(results):
    return [one.text for one in results]


def test_without_a_policy_answers_are_the_base_s(lm, requests):
    lm.prune([])
    assert texts(lm.generate_until(requests)) == plain(lm, requests)


def test_likelihoods_are_of_the_pruned_model_and_ask_without_the_answer(lm, requests, documents):
    for one in requests:
        one.arguments = (one.args[0], "red", *one.args[2:])
    lm.prune([])
    dense = lm.loglikelihood(requests)
    assert dense == Base.loglikelihood(lm, requests)
    ASKED.clear()
    lm.prune([Asking(keep=8)])
    pruned = lm.loglikelihood(requests)
    assert [a != b for a, b in zip(dense, pruned, strict=True)] == [bool(one["images"]) for one in documents]
    assert [one["question"] for one in documents for _ in one["images"]] == ASKED


def test_rounds_are_of_the_pruned_model(lm, requests):
    lm.prune([])
    dense = lm.generate_until(requests)
    lm.prune([Random(keep=4)])
    pruned = lm.generate_until(requests)
    rounds = lm.generate_until_multi_round(requests)
    assert [one.text for (one,) in rounds] == texts(pruned) != texts(dense)


def test_tokens_are_told_of_the_right_document(lm, requests):
    lm.prune([Random(keep=0.25)])
    counts = [one.token_counts.to_dict() for one in lm.generate_until(requests)]
    for i, found in enumerate(counts):
        pictures = i % 3
        told = {"visual_kept": 64 * pictures, "visual_total": 256 * pictures} if pictures else {}
        assert {name: value for name, value in found.items() if name != "visual_prefill_flops"} == told


def test_the_question_of_each_prompt_is_its_instruction(lm, requests, documents):
    ASKED.clear()
    lm.prune([Asking(keep=8)])
    lm.generate_until(requests)
    longest_first = sorted(documents, key=lambda one: (-len(one["question"]), one["id"]))
    assert [one["question"] for one in longest_first for _ in one["images"]] == ASKED


def test_placeholders_are_no_part_of_a_question(lm, requests):
    requests[1].arguments = ("<image>\nwhat?", *requests[1].arguments[1:])
    assert _question(requests[1]) == "what?"


def asked_of(task, documents):
    def pictures(document):
        return document["images"]

    return [
        Instance(
            request_type="generate_until",
            arguments=(one["question"], {"max_new_tokens": 2, "do_sample": False}, pictures, one["id"], task, "test"),
            idx=0,
            metadata={"task": task, "doc_id": one["id"], "repeats": 1},
        )
        for one in documents
    ]


def test_several_tasks_are_asked_one_after_the_other(lm, documents, tmp_path, monkeypatch):
    """Batched together, a base reads documents of the first request's task."""
    other = [{**one, "id": i} for i, one in enumerate(reversed(documents))]
    monkeypatch.setattr(lm, "task_dict", {"a": {"test": documents}, "b": {"test": other}})
    both = [one for pair in zip(asked_of("a", documents), asked_of("b", other), strict=True) for one in pair]
    lm.prune([], Journal(tmp_path, {}))
    results = lm.generate_until(both)
    monkeypatch.setattr(lm, "batch_size", 1)
    lm.prune([])
    alone = [lm.generate_until([one])[0] for one in both]
    assert texts(results) == texts(alone)
    assert [one.token_counts.visual for one in results] == [one.token_counts.visual for one in alone]


def test_a_document_twice_in_a_batch_is_told_twice(lm, requests, tmp_path):
    lm.prune([Random(keep=32)], Journal(tmp_path, {}))
    results = lm.generate_until([requests[1], requests[1], requests[2]])
    assert [one.token_counts.visual["kept"] for one in results] == [32, 32, 64]


def test_other_pictures_are_asked_again(lm, documents, requests, tmp_path, monkeypatch):
    lm.prune([], Journal(tmp_path, {}))
    before = texts(lm.generate_until(requests))
    turned = [{**one, "images": documents[i - 1]["images"]} for i, one in enumerate(documents)]
    monkeypatch.setattr(lm, "task_dict", {"shapes": {"test": turned}})
    lm.prune([], Journal(tmp_path, {}))
    lm.calls.clear()
    after = texts(lm.generate_until(requests))
    assert sorted(chain(*lm.calls)) == list(range(COUNT))
    assert after == plain(lm, requests) != before


def test_the_model_is_itself_again(lm, requests):
    def state():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()]
        return set(vars(lm.model)), lm.task_dict, lm.cache_hook, hooks

    before = state()
    lm.prune([CDPruner(keep=64)])
    lm.generate_until(requests)
    assert state() == before


class Broken(Random):
    """Raises when it is asked the second time."""

    asked = 0

    def select(self, tokens, k):
        Broken.asked += 1
        if Broken.asked == 2:
            raise NotEngagedError("policy='broken' gave up.")
        return super().select(tokens, k)


def test_an_error_of_ours_ends_the_run_though_the_base_swallows_errors(lm, requests):
    Broken.asked = 0
    lm.prune([Broken(keep=8)])
    lm.calls.clear()
    with pytest.raises(NotEngagedError, match="gave up"):
        lm.generate_until(requests)
    assert len(lm.calls) == 2
    assert "generate" not in vars(lm.model)


def test_other_errors_are_the_base_s_affair_and_counted(lm, requests, monkeypatch):
    lm.prune([])
    own = type(lm.model).generate

    def sometimes(self, *args, **kwargs):
        if len(lm.calls) == 2:
            raise RuntimeError("out of memory")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(lm.model), "generate", sometimes)
    lm.calls.clear()
    results = lm.generate_until(requests)
    assert lm.failures == ["RuntimeError: out of memory"]
    assert [i for i, text in enumerate(texts(results)) if text != "" and i in lm.calls[1]] == []
    assert sum(text != "" for text in texts(results)) > 1


def test_a_run_that_was_stopped_goes_on_and_asks_nothing_twice(lm, requests, tmp_path):
    lm.prune([Random(keep=16)], Journal(tmp_path / "whole", {}))
    whole = lm.generate_until(requests)
    Broken.asked = 0
    lm.prune([Broken(keep=16)], Journal(tmp_path / "part", {}))
    lm.calls.clear()
    with pytest.raises(NotEngagedError):
        lm.generate_until(requests)
    answered = list(chain(*lm.calls[:-1]))
    assert answered
    lm.prune([Random(keep=16)], Journal(tmp_path / "part", {}))
    lm.calls.clear()
    again = lm.generate_until(requests)
    asked = list(chain(*lm.calls))
    assert sorted(asked + answered) == list(range(COUNT))
    assert texts(again) == texts(whole)
    assert [one.token_counts for one in again] == [one.token_counts for one in whole]
    lm.calls.clear()
    assert texts(lm.generate_until(requests)) == texts(whole)
    assert lm.calls == []


def test_empty_answers_of_errors_are_asked_again(lm, requests, tmp_path, monkeypatch):
    lm.prune([], Journal(tmp_path, {}))
    with monkeypatch.context() as patch:
        patch.setattr(type(lm.model), "generate", lambda *_, **__: 1 / 0)
        assert set(texts(lm.generate_until(requests))) == {""}
    lm.prune([], Journal(tmp_path, {}))
    assert texts(lm.generate_until(requests)) == plain(lm, requests)


def test_inside_the_decoder_kept_is_the_mean_over_layers(lm, requests):
    lm.prune([FastV(keep=64, layer=2)])
    counts = [one.token_counts.visual for one in lm.generate_until(requests)]
    layers = lm.model.config.text_config.num_hidden_layers
    assert counts[1]["kept"] == round((2 * 256 + (layers - 2) * 64) / layers, 2)
    assert counts[1]["total"] == 256


def test_beams_count_once(lm, documents):
    from tokenprune import wrap

    processor, one = lm.processor, documents[1]
    inputs = processor(text=["<image> " + one["question"]] * 2, images=one["images"] * 2, return_tensors="pt")
    with wrap(lm.model, Random(keep=64)) as handle:
        lm.model.generate(**inputs, num_beams=3, max_new_tokens=2, do_sample=False)
        assert [each["kept"] for each in seen(handle.report(), 2)] == [64, 64]


def test_a_policy_that_cannot_serve_the_model_is_refused_before_anything_is_asked(lm):
    with pytest.raises((UnsupportedPolicyError, InvalidArgumentError)):
        lm.prune([CDPruner(keep=64), CDPruner(keep=64, per="crop")])


def test_unknown_bases_and_arguments_get_a_sentence():
    with pytest.raises(InputError, match=r"base='llava_fh' is no model of lmms-eval \(did you mean 'llava_hf'"):
        built("llava_fh", {})
    with pytest.raises(InputError, match=r"base='llava_hf' cannot be made of .*Unexpected kwargs.*--base-args"):
        built("llava_hf", {"pretraned": "x"})
    with pytest.raises(InputError, match=r"base='llava_hf' cannot be made of pretrained=nothing/here"):
        built("llava_hf", {"pretrained": "nothing/here", "device": "cpu"})


def test_a_base_without_a_model_in_this_process_is_refused():
    class Remote(Recorded, lmms):
        model = "gpt"
        loglikelihood = generate_until = generate_until_multi_round = None

    with pytest.raises(InputError, match="runs no transformers model in this process"):
        plugin.transformers_model(Remote())


def arguments(**more):
    given = {"base": "llava_hf", "pretrained": shapes.CHECKPOINT, "device": "cpu", "device_map": "cpu", **more}
    return ",".join(f"{name}={value}" for name, value in given.items())


def test_the_entry_point_makes_a_pruned_base():
    from lmms_eval.models import get_model

    kind = get_model("tokenprune")
    assert kind is TokenPrune
    lm = kind.create_from_arg_string(arguments(policy="cdpruner", keep=64, force_simple=True), {"batch_size": 1})
    assert lm.policies == (CDPruner(keep=64),)
    assert lm.is_simple
    assert type(lm).__mro__[2].__module__ == "lmms_eval.models.simple.llava_hf"


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"policy": "cdprunr"}, UnknownPolicyError, "did you mean 'cdpruner'"),
        ({"policy": "cdpruner", "keep": "lots"}, InvalidArgumentError, "keep='lots' is no number"),
        ({"policy": "cdpruner", "keep": 2.5}, InvalidArgumentError, "keep=2.5"),
    ],
    ids=["policy", "keep", "share"],
)
def test_the_entry_point_s_bad_arguments(more, error, said):
    with pytest.raises(error, match=said):
        TokenPrune.create_from_arg_string(arguments(**more))


def test_the_entry_point_needs_a_base():
    with pytest.raises(InvalidArgumentError, match="base=None"):
        TokenPrune.create_from_arg_string("policy=cdpruner")

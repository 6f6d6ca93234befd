"""Tasks of lmms-eval asked of pruned models: prompts of the base, answers of the direct evaluation, nothing lost."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from tokenprune import CDPruner, FastV, Random, wrap
from tokenprune.errors import InputError, InvalidArgumentError
from tokenprune.eval import shapes
from tokenprune.eval.lmms import run
from tokenprune.eval.lmms.run import Session, opened
from tokenprune.eval.tasks import EMBEDDED, built

COUNT = 24
EMBEDDED_IMAGES = EMBEDDED["shapes"]
# Asks otherwise under the name of the base than under any other
OWN_PROMPTS = """
include: shapes.yaml
task: shapes_prompted
doc_to_text: !function prompts.text
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
  llava_hf:
    pre_prompt: "what is this? "
"""
TEXT_ONLY = """
include: shapes.yaml
task: shapes_blind
doc_to_visual: !function prompts.nothing
"""
FILTERED = """
include: shapes.yaml
task: shapes_filtered
filter_list:
  - name: first
    filter: [{function: take_first}]
  - name: color
    filter: [{function: regex, regex_pattern: "(red|blue)"}, {function: take_first}]
"""
PROMPTS = """
def text(doc, lmms_eval_specific_kwargs=None):
    return (lmms_eval_specific_kwargs or {}).get("pre_prompt", "") + doc["question"]


def nothing(doc):
    return []
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = built(tmp_path_factory.mktemp("tasks"), ["shapes"], count=COUNT)
    (folder / "shapes_prompted.yaml").write_text(OWN_PROMPTS)
    (folder / "shapes_blind.yaml").write_text(TEXT_ONLY)
    (folder / "shapes_filtered.yaml").write_text(FILTERED)
    (folder / "prompts.py").write_text(PROMPTS)
    return folder


@pytest.fixture(scope="module")
def session(tasks):
    made = opened("llava_hf", EMBEDDED_IMAGES, include_path=[tasks], defaults=False)
    yield made
    made.close()


@pytest.fixture(scope="module")
def samples():
    return list(shapes.held_out(COUNT))


def asked_of(model):
    """Token ids of every prompt, as they come."""
    ids = []

    def note(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1:  # no step of decoding
            ids.append(kwargs["input_ids"].tolist())

    return ids, model.register_forward_pre_hook(note, with_kwargs=True)


@pytest.mark.parametrize("task", ["shapes", "shapes_prompted"])
def test_prompts_and_answers_without_a_policy_are_those_of_the_base_s_own_run(session, tasks, tmp_path, task):
    given = dict(EMBEDDED_IMAGES)
    base = get_model("llava_hf", given.pop("force_simple"))(**given, batch_size=1)
    base.clean = lambda: None
    theirs, hook = asked_of(base.model)
    manager = TaskManager("ERROR", include_path=str(tasks), include_defaults=False, model_name="llava_hf")
    own = simple_evaluate(base, tasks=[task], task_manager=manager, batch_size=1, limit=COUNT)
    hook.remove()
    ours, hook = asked_of(session.model)
    session.evaluate([], [task], tmp_path, limit=COUNT)
    hook.remove()
    assert ours == theirs
    assert len(ours) == COUNT
    answers = {one["doc_id"]: one["filtered_resps"] for one in own["samples"][task]}
    assert {one["doc_id"]: one["filtered_resps"] for one in session.samples(tmp_path, task)} == answers


def test_prompts_follow_the_name_of_the_base(session, tmp_path):
    found = {}
    for task in ("shapes", "shapes_prompted"):
        found[task], hook = asked_of(session.model)
        session.evaluate([], [task], tmp_path / task, limit=2)
        hook.remove()
    assert [len(a[0]) + 3 < len(b[0]) for a, b in zip(found["shapes"], found["shapes_prompted"], strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize(
    "policy",
    [None, CDPruner(keep=0.25), Random(keep=32), FastV(keep=64, layer=2)],
    ids=["none", "cdpruner", "random", "fastv"],
)
def test_answers_are_those_of_the_direct_evaluation(session, samples, tmp_path, policy):
    result = session.evaluate([policy] if policy else [], ["shapes"], tmp_path)
    images, questions = [one.image for one in samples], [one.question.text for one in samples]
    model, processor = shapes.load()
    direct = []
    with wrap(model, policy or "none", tokenizer=processor.tokenizer) as handle:
        for image, question in zip(images, questions, strict=True):
            handle.instruction = question
            direct += shapes.answer(model, processor, [image], [question])
    lines = session.samples(tmp_path, "shapes")
    assert [one["doc_id"] for one in lines] == list(range(COUNT))
    assert [one["filtered_resps"][0].split()[0] for one in lines] == direct
    right = [word == one.question.answer for word, one in zip(direct, samples, strict=True)]
    assert result["results"]["shapes"]["accuracy,none"] == pytest.approx(sum(right) / COUNT, abs=1e-12)
    assert [one["doc"]["kind"] for one in lines] == [one.question.kind for one in samples]


def test_tokens_are_in_the_log_of_every_sample(session, tmp_path):
    result = session.evaluate([Random(keep=32)], ["shapes"], tmp_path, limit=5)
    seen = [one["visual"] for one in session.samples(tmp_path, "shapes")]
    assert [(one["kept"], one["total"]) for one in seen] == [(32, 256)] * 5
    assert result["visual"] == {"shapes": {"kept": 32, "total": 256}}
    assert result["settings"]["policy"] == "random(keep=32)"
    assert result["samples"] == {"shapes": 5}
    assert json.loads((tmp_path / "results.json").read_text()) == result


def test_a_task_with_several_filters_has_a_line_for_every_document(session, tmp_path):
    session.evaluate([], ["shapes_filtered"], tmp_path / "filtered", limit=5)
    session.evaluate([], ["shapes"], tmp_path / "plain", limit=5)
    found, plain = (
        session.samples(tmp_path / "filtered", "shapes_filtered"),
        session.samples(tmp_path / "plain", "shapes"),
    )
    assert [(one["doc_id"], one["accuracy"]) for one in found] == [(one["doc_id"], one["accuracy"]) for one in plain]


def test_offset_and_limit_choose_documents(session, tmp_path):
    session.evaluate([], ["shapes"], tmp_path, limit=3, offset=4)
    assert [one["doc_id"] for one in session.samples(tmp_path, "shapes")] == [4, 5, 6]


def test_more_documents_ask_only_the_new_ones(session, tmp_path):
    session.evaluate([Random(keep=32)], ["shapes"], tmp_path, limit=4)
    ids, hook = asked_of(session.model)
    result = session.evaluate([Random(keep=32)], ["shapes"], tmp_path, limit=6)
    hook.remove()
    assert len(ids) == 2
    assert result["samples"] == {"shapes": 6}
    assert all(one["visual"]["kept"] == 32 for one in session.samples(tmp_path, "shapes"))


def test_a_disk_that_is_full_at_the_end_loses_no_answer(session, tmp_path, monkeypatch):
    def full(file, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run, "replaced", full)
        with pytest.raises(InputError, match="No space left on device"):
            session.evaluate([Random(keep=32)], ["shapes"], tmp_path, limit=4)
    assert not (tmp_path / "results.json").exists()
    ids, hook = asked_of(session.model)
    session.evaluate([Random(keep=32)], ["shapes"], tmp_path, limit=4)
    hook.remove()
    assert ids == []
    assert len(session.samples(tmp_path, "shapes")) == 4


def test_what_cannot_be_used_blocks_no_folder(session, tmp_path):
    with pytest.raises(InvalidArgumentError, match="positions='foo'"):
        session.evaluate([Random(keep=32)], ["shapes"], tmp_path, limit=2, positions="foo")
    session.evaluate([Random(keep=32)], ["shapes"], tmp_path, limit=2)


def test_weights_that_changed_are_told_from_those_before(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shapes.CHECKPOINT, folder)
    before = run.weights({"pretrained": str(folder), "dtype": "float32"})
    assert before == run.weights({"pretrained": str(folder)}) != ""
    (folder / "model.safetensors").write_bytes(b"other")
    assert run.weights({"pretrained": str(folder)}) != before
    assert run.weights({"pretrained": "llava-hf/llava-1.5-7b-hf"}) == ""


def test_arguments_that_cannot_be_get_a_sentence(tasks, tmp_path):
    with pytest.raises(InputError, match="base_args has batch_size=4: give --batch-size"):
        opened("llava_hf", {**EMBEDDED_IMAGES, "batch_size": 4})
    with pytest.raises(InputError, match="is no folder"):
        opened("llava_hf", EMBEDDED_IMAGES, include_path=[tasks / "shapes.yaml"], defaults=False)
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(InputError, match="has a task that cannot be read"):
        opened("llava_hf", EMBEDDED_IMAGES, include_path=[tmp_path], defaults=False)


def test_another_configuration_in_the_same_folder_is_refused(session, tmp_path):
    session.evaluate([Random(keep=32)], ["shapes"], tmp_path, limit=2)
    with pytest.raises(InputError, match="holds answers with policy='random"):
        session.evaluate([Random(keep=16)], ["shapes"], tmp_path, limit=2)
    session.evaluate([Random(keep=16)], ["shapes"], tmp_path, limit=2, fresh=True)
    assert session.samples(tmp_path, "shapes")[0]["visual"]["kept"] == 16


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("shape", r"tasks='shape' is no task of lmms-eval \(did you mean 'shapes"),
        ("shapes_blind", "tasks='shapes_blind' shows the model no image or video"),
    ],
)
def test_tasks_that_cannot_be_asked_get_a_sentence(session, task, said):
    with pytest.raises(InputError, match=said):
        session.check([task])


def test_a_task_without_its_data_gets_a_sentence(tasks, tmp_path):
    folder = tmp_path / "tasks"
    shutil.copytree(tasks, folder)
    (folder / "shapes.parquet").write_bytes(b"none")
    made = Session("llava_hf", EMBEDDED_IMAGES, include_path=[folder], defaults=False)
    with pytest.raises(InputError, match="tasks='shapes' cannot be loaded"):
        made.check(["shapes"])


def test_a_model_of_messages_is_asked_by_messages(tasks, samples, tmp_path):
    """The chat class of the base: needs a chat template, which the embedded model comes without."""
    folder = tmp_path / "model"
    shutil.copytree(shapes.CHECKPOINT, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for part in messages[0]['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else ' ' + part['text'] }}{% endfor %}"
    )
    given = {"pretrained": str(folder), "device": "cpu", "device_map": "cpu", "dtype": "float32"}
    made = Session("llava_hf", given, include_path=[tasks], defaults=False)
    assert not made.lm.is_simple
    made.evaluate([Random(keep=64)], ["shapes"], tmp_path / "run", limit=8)
    model, processor = shapes.load()
    with wrap(model, Random(keep=64)):
        direct = [shapes.answer(model, processor, [one.image], [one.question.text])[0] for one in samples[:8]]
    lines = made.samples(tmp_path / "run", "shapes")
    assert [one["filtered_resps"][0].split()[0] for one in lines] == direct
    assert {one["visual"]["kept"] for one in lines} == {64}


def command(out: Path, *launched: str) -> list[str]:
    asked = ["--base", "embedded", "--tasks", "shapes", "--policy", "random", "--limit", "30", "--out", str(out)]
    return [sys.executable, *launched, "-m", "tokenprune", "eval", *asked, "--no-plot"]


def answers(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "samples_shapes.jsonl").read_text().splitlines()]
    return [(one["doc_id"], one["filtered_resps"], one["visual"]["kept"]) for one in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one process."""
    out = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_two_processes_answer_as_one_does(whole, tmp_path):
    launched = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    told = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(command(tmp_path, *launched, *told), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("none", "random_keep=0.25"):
        assert len(list((tmp_path / name).glob("answers.*.jsonl"))) == 2
        assert answers(tmp_path / name) == answers(whole / name)
        both = [json.loads((out / name / "results.json").read_text())["results"]["shapes"] for out in (tmp_path, whole)]
        assert both[0].pop("accuracy_stderr_clt,none") == pytest.approx(both[1].pop("accuracy_stderr_clt,none"))
        assert both[0] == both[1]


def test_a_run_that_is_killed_goes_on(whole, tmp_path):
    folder = tmp_path / "random_keep=0.25"
    running = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = folder / "answers.0.jsonl"
    while running.poll() is None and not (kept.exists() and kept.read_text().count("\n") >= 3):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = kept.read_text()
    assert 3 <= before.count("\n") < 30
    assert not (folder / "results.json").exists()
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert kept.read_text().startswith(before)
    assert answers(folder) == answers(whole / "random_keep=0.25")
    keys = [json.loads(line)["key"] for line in kept.read_text().splitlines() if line.endswith("}")]
    assert len(set(keys)) == 30


def test_lmms_eval_itself_takes_tokenprune_as_a_model(tasks, tmp_path):
    given = {**EMBEDDED_IMAGES, "base": "llava_hf", "policy": "random", "keep": 32}
    text = ",".join(f"{name}={value}" for name, value in given.items())
    asked = ["--tasks", "shapes", "--limit", "4", "--include_path", str(tasks), "--output_path", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", "--model", "tokenprune", "--model_args", text, *asked, "--log_samples"],
        capture_output=True,
        text=True,
        check=False,
    )
    logged = list(tmp_path.rglob("*_samples_shapes.jsonl"))
    assert len(logged) == 1, done.stderr[-2000:] + done.stdout[-2000:]
    lines = [json.loads(line) for line in logged[0].read_text().splitlines()]
    counts = [one["token_counts"][0] for one in lines]
    assert [(one["visual_kept"], one["visual_total"]) for one in counts] == [(32, 256)] * 4

"""Local tasks of lmms-eval: what the models read there is what they read when asked directly, bit for bit."""

import errno
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from tokenprune.errors import InputError, InvalidArgumentError
from tokenprune.eval import shapes
from tokenprune.eval.tasks import EMBEDDED, GROUP, TASKS, __main__, build, built, embedded, utils

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return built(tmp_path_factory.mktemp("tasks"), count=COUNT)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Copies that `datasets` makes."""
    import lmms_eval.api.task

    monkeypatch.setattr(lmms_eval.api.task, "_resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))


def manager(folder):
    from lmms_eval.tasks import TaskManager

    return TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name=embedded.BASE)


def samples(task, count=COUNT):
    drawn = {"shapes": shapes.held_out, "shapes_video": shapes.held_out_clips, "easy_vqa": lambda _: shapes.easy_vqa()}
    return list(islice(drawn[task](count), count))


def directly(task, asked):
    """(answers of `shapes`, what its processor makes of every question)."""
    questions = [one.question.text for one in asked]
    if task == "shapes_video":
        model, processor = shapes.load_video()
        clips = [one.frames for one in asked]
        answers = shapes.answer_video(model, processor, clips, questions, batch_size=8)
        made = [
            processor(text=shapes.video_prompt(q), videos=[c], return_tensors="pt")
            for c, q in zip(clips, questions, strict=True)
        ]
        return answers, Counter((key(one["input_ids"]), key(one["pixel_values_videos"])) for one in made)
    model, processor = shapes.load()
    images = [one.image for one in asked]
    answers = shapes.answer(model, processor, images, questions, batch_size=8)
    made = [
        processor(text=shapes.prompt(q), images=i, return_tensors="pt") for i, q in zip(images, questions, strict=True)
    ]
    return answers, Counter((key(one["input_ids"]), key(one["pixel_values"])) for one in made)


def key(tensor):
    return tensor.numpy().tobytes()


@pytest.mark.parametrize("task", TASKS)
def test_lmms_eval_asks_what_the_model_was_trained_on(task, folder, own_cache):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model

    ((name, _),) = embedded.chosen([task]).items()
    given = dict(EMBEDDED[name])
    lm = get_model(embedded.BASE, given.pop("force_simple"))(**given)
    read, generate = Counter(), lm.model.generate

    def noted(**inputs):
        pixels = inputs.get("pixel_values", inputs.get("pixel_values_videos"))
        read[key(inputs["input_ids"]), key(pixels)] += 1
        return generate(**inputs)

    lm.model.generate = noted
    result = simple_evaluate(model=lm, tasks=[task], task_manager=manager(folder), batch_size=1, bootstrap_iters=0)
    logged = sorted(result["samples"][task], key=lambda one: one["doc_id"])
    asked = samples(task)
    answers, inputs = directly(task, asked)
    assert [one["filtered_resps"] for one in logged] == [[word] for word in answers]
    assert read == inputs
    assert [one["doc"]["kind"] for one in logged] == [one.question.kind for one in asked]
    assert [one["doc"]["id"] for one in logged] == list(range(COUNT))
    right = np.mean([word == one.question.answer for word, one in zip(answers, asked, strict=True)])
    assert result["results"][task]["accuracy,none"] == right
    assert result["higher_is_better"][task] == {"accuracy": True}


def test_clips_decode_to_the_frames_they_were_made_of(folder):
    from decord import VideoReader

    for i, sample in enumerate(samples("shapes_video", 4)):
        (file,) = utils_of(folder).clip({"video": f"{build.VERSION}-{i:05}.mkv"})
        decoded = VideoReader(file).get_batch(range(embedded.FRAMES)).asnumpy()
        assert np.array_equal(decoded, sample.frames)


def utils_of(folder):
    import importlib.util

    spec = importlib.util.spec_from_file_location("local_utils", folder / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_group_has_all_tasks(folder, own_cache):
    ((group, tasks),) = manager(folder).load_task_or_group([GROUP]).items()
    assert group.group == GROUP
    assert list(tasks) == list(TASKS)


def test_another_call_writes_what_is_missing_and_nothing_else(folder):
    before = stamps(folder)
    built(folder, [GROUP], count=COUNT)
    assert stamps(folder) == before
    built(folder, ["shapes"], count=COUNT - 1)
    changed = {name for name, stamp in stamps(folder).items() if stamp != before[name]}
    assert changed == {"shapes.yaml", "shapes.parquet"}
    (folder / "clips" / f"{build.VERSION}-00003.mkv").unlink()
    built(folder, count=COUNT)
    assert set(stamps(folder)) == set(before)
    assert len(manager_documents(folder, "shapes")) == COUNT


def stamps(folder):
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def manager_documents(folder, name):
    from pyarrow import parquet

    return parquet.read_table(folder / f"{name}.parquet")


def test_another_version_is_another_task(folder, tmp_path, monkeypatch):
    built(tmp_path, ["shapes"], count=2)
    first = stamps(tmp_path)
    monkeypatch.setattr(build, "VERSION", build.VERSION + 1)
    built(tmp_path, ["shapes"], count=2)
    assert stamps(tmp_path)["shapes.parquet"] != first["shapes.parquet"]


def test_a_stopped_build_leaves_no_task_half(tmp_path, monkeypatch):
    written, write = [], build.write_clip

    def stopped(frames, file):
        if len(written) == 2:
            file.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(file)
        write(frames, file)

    monkeypatch.setattr(build, "write_clip", stopped)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path, ["shapes_video"], count=3)
    left = stamps(tmp_path)
    assert set(left) == {"_local", "utils.py", f"clips/{build.VERSION}-00000.mkv", f"clips/{build.VERSION}-00001.mkv"}
    monkeypatch.setattr(build, "write_clip", write)
    built(tmp_path, ["shapes_video"], count=3)
    assert left.items() <= stamps(tmp_path).items()
    assert {"shapes_video.yaml", "shapes_video.parquet", f"clips/{build.VERSION}-00002.mkv"} <= set(stamps(tmp_path))


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    built(tmp_path, ["shapes"], count=2)
    before = stamps(tmp_path)

    def full(file, rows, features):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, "_write_parquet", full)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\): free some space"):
        built(tmp_path, ["shapes"], count=3)
    assert stamps(tmp_path) == before


@pytest.mark.parametrize(
    ("names", "count", "sentence"),
    [
        (["shape"], 2, "task 'shape' is unknown \\(did you mean 'shapes'\\?\\): there are shapes, shapes_video"),
        (["shapes"], 0, "count=0 is no number of documents: give 1 or more"),
    ],
)
def test_what_cannot_be_built_is_refused(names, count, sentence, tmp_path):
    with pytest.raises(InvalidArgumentError, match=sentence):
        built(tmp_path, names, count=count)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install tokenprune-vlm\\[eval\\]"):
        built(tmp_path, ["shapes"], count=1)


def test_the_module_writes_the_folder(tmp_path, monkeypatch, capsys):
    argv = ["tasks", "--out", str(tmp_path), "--task", "shapes", "--count", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    __main__.main()
    assert f"--include_path {tmp_path} --tasks shapes " in capsys.readouterr().out
    assert (tmp_path / "shapes.yaml").exists()
    monkeypatch.setattr(sys, "argv", [*argv[:3], "--task", "cubes"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "task 'cubes' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "right"), [("red", 1.0), (" Red.\nIt is", 1.0), ("redder", 0.0), ("not red", 0.0), ("", 0.0)]
)
def test_the_first_word_counts(answer, right):
    assert utils.scored({"answer": "red"}, [answer]) == {"accuracy": right}


def test_the_embedded_models_are_named_as_the_command_line_can():
    from lmms_eval.utils import simple_parse_args_string

    assert [one["pretrained"] for one in EMBEDDED.values()] == [str(shapes.CHECKPOINT), str(shapes.VIDEO_CHECKPOINT)]
    for given in EMBEDDED.values():
        assert simple_parse_args_string(",".join(f"{name}={value}" for name, value in given.items())) == given
    assert embedded.chosen([GROUP]) == {"shapes": ["shapes", "easy_vqa"], "shapes_video": ["shapes_video"]}
    with pytest.raises(InvalidArgumentError, match="task 'gqa' is unknown"):
        embedded.chosen(["gqa"])


def test_all_documents_are_the_held_out_ones():
    assert TASKS["easy_vqa"] == sum(1 for _ in shapes.easy_vqa())


def test_easy_vqa_has_no_more_documents_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "easy_vqa", 3)
    folder = built(tmp_path, ["easy_vqa"], count=5)
    assert "documents: 3" in (folder / "easy_vqa.yaml").read_text()

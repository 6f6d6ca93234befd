"""Answers on disk: kept as they come, gone on from, never of other settings."""

import errno
import os

import pytest
from lmms_eval.api.instance import Instance

from tokenprune.errors import InputError
from tokenprune.eval.lmms import journal
from tokenprune.eval.lmms.journal import Entry, Journal, key

SETTINGS = {"policy": "cdpruner(keep=64)", "base": "llava_hf"}
SEEN = {"kept": 64, "total": 256, "prefill_flops": 0.2}


def request(doc=0, text="what color?", *, task="shapes", **how):
    return Instance(
        request_type="generate_until",
        arguments=(text, {"max_new_tokens": 2, "do_sample": False, **how}, None, doc, task, "test"),
        idx=0,
        metadata={"task": task, "doc_id": doc, "repeats": 1},
    )


def opened(folder, **options):
    made = Journal(folder, SETTINGS, **options)
    made.read()
    return made


def test_an_answer_is_there_again(tmp_path):
    opened(tmp_path).note(key(request(3)), Entry("red", SEEN))
    assert opened(tmp_path).get(key(request(3))) == Entry("red", SEEN)


@pytest.mark.parametrize(
    "other",
    [request(4), request(3, "what shape?"), request(3, task="easy_vqa"), request(3, max_new_tokens=3)],
    ids=["document", "question", "task", "length"],
)
def test_another_request_is_asked(tmp_path, other):
    opened(tmp_path).note(key(request(3)), Entry("red"))
    assert opened(tmp_path).get(key(other)) is None


def test_what_is_sampled_is_asked_again(tmp_path):
    made = opened(tmp_path)
    made.note(key(request(temperature=0.7, do_sample=True)), Entry("red"))
    assert made.get(key(request(temperature=0.7, do_sample=True))) is None
    assert not made.file.exists()


def test_every_process_reads_the_answers_of_all(tmp_path):
    first, second = opened(tmp_path, rank=0), opened(tmp_path, rank=1)
    first.note(key(request(0)), Entry("red"))
    second.note(key(request(1)), Entry("blue"))
    assert first.file != second.file
    again = opened(tmp_path)
    assert [again.get(key(request(i))).answer for i in range(2)] == ["red", "blue"]


def test_a_line_that_was_cut_off_is_asked_again_and_harms_none_behind_it(tmp_path):
    made = opened(tmp_path)
    made.note(key(request(0)), Entry("red"))
    made.note(key(request(1)), Entry("blue"))
    made.file.write_bytes(made.file.read_bytes()[:-9])
    again = opened(tmp_path)
    assert again.get(key(request(0))) == Entry("red")
    assert again.get(key(request(1))) is None
    again.note(key(request(1)), Entry("green"))
    assert opened(tmp_path).get(key(request(1))) == Entry("green")


def test_an_answer_is_written_once(tmp_path):
    made = opened(tmp_path)
    for _ in range(2):
        made.note(key(request(0)), Entry("red"))
    assert len(made.file.read_text().splitlines()) == 1


def test_another_document_is_another_request():
    assert len({key(request(0)), key(request(0), "a"), key(request(0), "b")}) == 3


def test_other_settings_are_refused_and_named(tmp_path):
    opened(tmp_path).note(key(request(0)), Entry("red"))
    with pytest.raises(InputError, match=r"policy='cdpruner\(keep=64\)', not 'random\(keep=64\)'.*--fresh"):
        Journal(tmp_path, {**SETTINGS, "policy": "random(keep=64)"})
    assert opened(tmp_path).get(key(request(0))) == Entry("red")


def test_fresh_forgets(tmp_path):
    opened(tmp_path).note(key(request(0)), Entry("red"))
    assert opened(tmp_path, fresh=True).get(key(request(0))) is None
    assert Journal(tmp_path, {**SETTINGS, "policy": "random"}, fresh=True)


def test_a_process_that_comes_before_the_first_one_forgets_does_not_stumble(tmp_path):
    opened(tmp_path).note(key(request(0)), Entry("red"))
    second = Journal(tmp_path, {**SETTINGS, "policy": "random"}, rank=1, fresh=True)
    Journal(tmp_path, {**SETTINGS, "policy": "random"}, rank=0, fresh=True)
    second.read()
    assert second.get(key(request(0))) is None


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_settings_that_are_none_are_refused(tmp_path, text):
    opened(tmp_path).note(key(request(0)), Entry("red"))
    (tmp_path / journal.SETTINGS).write_text(text)
    with pytest.raises(InputError, match="is none of ours"):
        opened(tmp_path)


def test_settings_without_an_answer_refuse_nothing(tmp_path):
    opened(tmp_path)
    Journal(tmp_path, {"policy": "random"}).note(key(request(0)), Entry("red"))
    with pytest.raises(InputError, match="holds answers with"):
        opened(tmp_path)


def test_lines_that_are_no_answers_are_left_out(tmp_path):
    made = opened(tmp_path)
    made.note(key(request(0)), Entry("red"))
    made.file.write_text("[1]\n3\n" + made.file.read_text())
    assert opened(tmp_path).get(key(request(0))) == Entry("red")


def test_a_full_disk_is_one_sentence_and_loses_no_earlier_answer(tmp_path, monkeypatch):
    made = opened(tmp_path)
    made.note(key(request(0)), Entry("red"))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device.*goes on with the answers"):
        made.note(key(request(1)), Entry("blue"))
    monkeypatch.undo()
    assert opened(tmp_path).get(key(request(0))) == Entry("red")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "file" / "run", SETTINGS)

"""The training: packed rows equal the prompts of inference, and an interrupted run ends as an uninterrupted one."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from tokenprune.eval.shapes.data import IDS, Batches, tour_row
from tokenprune.eval.shapes.inference import prompt
from tokenprune.eval.shapes.language import EOS, WORDS, processor
from tokenprune.eval.shapes.modeling import Packed, build
from tokenprune.eval.shapes.questions import KINDS
from tokenprune.eval.shapes.scenes import scene, stream
from tokenprune.eval.shapes.stages import STAGES, Trainer, run
from tokenprune.eval.shapes.train import shortened

TINY = {"width": 32, "heads": 2, "vision_layers": 1, "text_layers": 2}


def tiny() -> Packed:
    torch.manual_seed(0)
    return Packed(build(**TINY), compiled=False).eval()


@torch.inference_mode()
def test_packed_rows_equal_separate_prompts():
    packed, batch = tiny(), Batches(2, 5, 0, dict.fromkeys(KINDS, 1.0))[0]
    rows = packed.decoder(packed.tower(batch.image), batch.rows)[0]
    separate = build(**TINY).eval()
    separate.load_state_dict(packed.model.state_dict())
    for i, image in enumerate(batch.image):
        for r, targets in enumerate(batch.targets[i]):
            length = int((targets >= 0).nonzero()[0]) + 1
            text = prompt(" ".join(WORDS[word] for word in batch.rows[i, r, :length]))
            inputs = processor()(text=text, images=Image.fromarray(image.numpy()), return_tensors="pt")
            alone = separate.model(**inputs).last_hidden_state[0, -1]
            torch.testing.assert_close(rows[i, r, length - 1], alone, atol=2e-4, rtol=0)


def test_a_batch_has_its_number():
    first, again, other = (Batches(2, 3, 0, dict.fromkeys(KINDS, 1.0))[number] for number in (4, 4, 5))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.image, other.image)


def test_tours_end_with_the_last_object():
    rng = stream("train", 5)
    drawn = scene(rng)
    words, targets = tour_row(drawn, rng)
    assert len(words) == len(drawn.items) + 1
    assert targets == [*words[1:], IDS[EOS]]


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path):
    stages = tuple(replace(stage, steps=2, batch=4, rows=8, easy_share=0.0) for stage in STAGES[:4] + STAGES[-2:])

    class Interrupted(Exception):
        pass

    def stop(stage, done):
        if stage is stages[1] and done == 1:
            raise Interrupted

    def train(file, export):
        trainer = Trainer(tiny())
        run(trainer, stages, file, 1, lambda *_: None, export)
        return trainer.state()["model"]

    whole = train(tmp_path / "whole.pt", lambda *_: None)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts.pt", stop)
    resumed = train(tmp_path / "parts.pt", lambda *_: None)
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_steps_from_the_command_line():
    assert shortened(STAGES, ["captions=7"])[2].steps == 7
    with pytest.raises(ValueError, match="the names are tower"):
        shortened(STAGES, ["caption=7"])


def test_weights_that_no_scene_can_answer_are_an_error(monkeypatch):
    monkeypatch.setitem(KINDS, "color", lambda items, rng: None)
    with pytest.raises(ValueError, match="name only kinds"):
        Batches(1, 2, 0, {"color": 1.0})[0]

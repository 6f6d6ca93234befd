"""The video training: packed clips equal the prompts of inference, backwards too; interrupted runs continue."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenprune.eval.shapes import modeling
from tokenprune.eval.shapes.inference import video_prompt
from tokenprune.eval.shapes.language import EOS, VIDEO_WORDS
from tokenprune.eval.shapes.scenes import stream
from tokenprune.eval.shapes.stages import run
from tokenprune.eval.shapes.video_clips import FRAMES, clip
from tokenprune.eval.shapes.video_data import FACTS, IDS, VideoBatches, order_row, seen_by_cells
from tokenprune.eval.shapes.video_model import CELLS, PackedVideo, build, processor
from tokenprune.eval.shapes.video_questions import KINDS
from tokenprune.eval.shapes.video_train import STAGES, VideoTrainer, batches

TINY = {"width": 32, "heads": 2, "vision_layers": 1, "text_layers": 4}
QUESTIONS = dict.fromkeys(KINDS, 1.0)


def tiny() -> PackedVideo:
    torch.manual_seed(0)
    return PackedVideo(build(modeling.build(**TINY)), compiled=False).eval()


@torch.inference_mode()
def test_packed_rows_equal_separate_prompts():
    pytest.importorskip("torchvision")
    packed, batch = tiny(), VideoBatches(2, 3, 0, QUESTIONS)[0]
    rows = packed.decoder(packed.tower(batch.frames), batch.rows)[0]
    separate = build(modeling.build(**TINY)).eval()
    separate.load_state_dict(packed.model.state_dict())
    played = [*batch.frames.numpy(), *(frames[::-1] for frames in batch.frames.numpy())]
    for i, frames in enumerate(played):
        for r, targets in enumerate(batch.targets[i]):
            length = int((targets >= 0).nonzero()[0]) + 1
            text = video_prompt(" ".join(VIDEO_WORDS[word] for word in batch.rows[i, r, :length]))
            inputs = processor()(text=text, videos=[np.ascontiguousarray(frames)], return_tensors="pt")
            assert (inputs["input_ids"] == IDS["<video>"]).sum() == FRAMES * CELLS + 1
            alone = separate.model(**inputs).last_hidden_state[0, -1]
            torch.testing.assert_close(rows[i, r, length - 1], alone, atol=2e-4, rtol=0)


def test_a_batch_has_its_number_and_plays_both_ways():
    first, again, other = (VideoBatches(2, 3, 0, QUESTIONS)[number] for number in (4, 4, 5))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.frames, other.frames)
    forwards, backwards = first.seen.unflatten(1, (FRAMES, CELLS)).split(2)
    assert torch.equal(forwards[..., 0].isnan(), backwards[..., 0].isnan().flip(1))


def test_a_cell_tells_the_way_so_far():
    rng = stream("train", 0)
    drawn = next(c for c in iter(lambda: clip(rng), None) if any(a.direction == "down" for a in c.actors))
    seen = seen_by_cells(drawn).reshape(FRAMES, CELLS, FACTS)
    index = next(i for i, a in enumerate(drawn.actors) if a.direction == "down")
    t = FRAMES - 1
    row, column = np.argwhere(drawn.owner[t] == index).mean(0).astype(int) // 2
    assert seen[t, row * 8 + column, 1] * 32 == pytest.approx(drawn.actors[index].way[1])
    assert seen[t, row * 8 + column, 3:].tolist() == pytest.approx([0, t / FRAMES])


def test_an_order_ends():
    rng = stream("train", 3)
    words, targets = order_row(clip(rng), rng)
    assert targets == [*words[1:], IDS[EOS]]


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path):
    stages = tuple(replace(stage, steps=2, batch=2, rows=4) for stage in (STAGES[0], STAGES[-1]))

    class Interrupted(Exception):
        pass

    def stop(stage, done):
        if stage is stages[1] and done == 1:
            raise Interrupted

    def train(file, export):
        trainer = VideoTrainer(tiny())
        before = {name: weight.clone() for name, weight in trainer.packed.model.state_dict().items()}
        run(trainer, stages, file, 1, lambda *_: None, export, batches)
        return before, trainer.state()["model"]

    before, whole = train(tmp_path / "whole.pt", lambda *_: None)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts.pt", stop)
    resumed = train(tmp_path / "parts.pt", lambda *_: None)[1]
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
        moved = not torch.equal(weight, before[name])
        assert moved != ("vision_tower" in name), f"{name}: the tower alone stays as it is"

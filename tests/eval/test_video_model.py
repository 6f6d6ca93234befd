"""The trained video checkpoint: loads through the Auto classes, answers, and needs the order of the frames to do so."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaOnevisionForConditionalGeneration

from tokenprune.eval import shapes
from tokenprune.eval.shapes.evaluate import accuracy, majority, overall
from tokenprune.eval.shapes.pictures import SAMPLES
from tokenprune.eval.shapes.scenes import stream
from tokenprune.eval.shapes.video_clips import FRAMES, clip
from tokenprune.eval.shapes.video_heldout import noise
from tokenprune.eval.shapes.video_model import CELLS
from tokenprune.eval.shapes.video_pictures import SEEDS, write_gif
from tokenprune.eval.shapes.video_questions import KINDS

pytest.importorskip("torchvision")  # the video processors of transformers need it

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def video():
    return shapes.load_video()


@pytest.fixture(scope="module")
def samples():
    return list(shapes.held_out_clips(100))


def asked(name):
    return next(entry for entry in json.loads((SAMPLES / "clips.json").read_text()) if entry["file"] == name)


def right(video, frames, entry):
    questions = entry["questions"]
    found = shapes.answer_video(*video, [frames] * len(questions), [q["question"] for q in questions])
    return [(q["question"], word) for q, word in zip(questions, found, strict=True) if word != q["answer"]] == []


def test_the_folder_is_small():
    files = [file for file in shapes.VIDEO_CHECKPOINT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 5 * MEBIBYTE


def test_loads_through_the_auto_classes():
    model = AutoModelForImageTextToText.from_pretrained(shapes.VIDEO_CHECKPOINT)
    processor = AutoProcessor.from_pretrained(shapes.VIDEO_CHECKPOINT)
    assert type(model) is LlavaOnevisionForConditionalGeneration
    assert model.dtype == torch.bfloat16
    frames = np.zeros((FRAMES, 60, 80, 3), np.uint8)
    inputs = processor(text=shapes.video_prompt("how many objects move?"), videos=[frames], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.video_token_id).sum() == FRAMES * CELLS + 1
    assert inputs["pixel_values_videos"].shape == (1, FRAMES, 3, 128, 128)


def test_answers_held_out_questions(video, samples):
    counts = accuracy(*video, samples)
    assert overall(counts) >= 0.85, counts
    assert set(counts) == set(KINDS)


def test_shuffled_frames_leave_the_axis_of_a_direction_only(video):
    samples = list(shapes.held_out_clips(60, first=1000, kinds=("direction",)))
    assert overall(accuracy(*video, samples)) >= 0.9
    shuffled = [shapes.shuffled(sample, seed) for seed, sample in enumerate(samples)]
    assert overall(accuracy(*video, shuffled)) <= 0.7


def test_noise_is_answered_no_better_than_by_guessing(video, samples):
    blind = [noise(sample, seed) for seed, sample in enumerate(samples)]
    assert overall(accuracy(*video, blind)) <= overall(majority(samples)) + 0.06


def test_clips_as_lists_of_pictures_and_batches_change_no_answer(video, samples):
    some = samples[:10]
    texts = [sample.question.text for sample in some]
    together = shapes.answer_video(*video, [sample.frames for sample in some], texts, batch_size=10)
    assert together == shapes.answer_video(*video, [sample.pictures for sample in some], texts, batch_size=1)
    with pytest.raises(ValueError, match="1 videos and 2 questions"):
        shapes.answer_video(*video, [some[0].frames], texts[:2])


@pytest.mark.parametrize("size", [(128, 128), (200, 90)])
def test_images_run(video, size):
    model, processor = video
    text = shapes.prompt("what color is the star?")
    inputs = processor(text=text, images=Image.new("RGB", size), return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=1).shape[1] == inputs["input_ids"].shape[1] + 1


@pytest.mark.parametrize("seed", [seed for seed, ending in SEEDS.items() if ending == "gif"])
def test_sample_gifs_are_what_is_rendered_and_answered(video, seed, tmp_path):
    name = f"clip-{seed}.gif"
    write_gif(clip(stream("test", seed)), tmp_path / name)
    again, stored = (
        np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(folder / name))])
        for folder in (tmp_path, SAMPLES)
    )
    assert stored.shape == (FRAMES, 128, 128, 3)
    assert np.abs(again.astype(int) - stored).mean() < 4, "a GIF has 256 colours, chosen by the version of Pillow"
    assert right(video, stored, asked(name))


@pytest.mark.parametrize("seed", [seed for seed, ending in SEEDS.items() if ending == "mp4"])
def test_the_sample_mp4_is_answered_after_decoding(video, seed):
    av = pytest.importorskip("av")
    name = f"clip-{seed}.mp4"
    with av.open(str(SAMPLES / name)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(frames) == FRAMES
    assert right(video, frames, asked(name))


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="train one with python -m tokenprune.eval.shapes.video_train"):
        shapes.load_video(folder=tmp_path)

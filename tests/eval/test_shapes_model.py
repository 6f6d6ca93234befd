"""The trained checkpoint: loads through the Auto classes, is small, answers, and looks at the image to do so."""

import builtins
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenprune.eval import shapes
from tokenprune.eval.shapes.clip import relevance_auc
from tokenprune.eval.shapes.evaluate import accuracy, majority, overall
from tokenprune.eval.shapes.heldout import easy_vqa
from tokenprune.eval.shapes.modeling import VISUAL

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def embedded():
    return shapes.load()


@pytest.fixture(scope="module")
def samples():
    return list(shapes.held_out(300))


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in shapes.CHECKPOINT.rglob("*") if file.is_file()) <= 20 * MEBIBYTE


def test_loads_through_the_auto_classes():
    model = AutoModelForImageTextToText.from_pretrained(shapes.CHECKPOINT)
    processor = AutoProcessor.from_pretrained(shapes.CHECKPOINT)
    assert model.dtype == torch.bfloat16
    inputs = processor(text=shapes.prompt("what color is the star?"), images=Image.new("RGB", (80, 60)))
    assert list(inputs["input_ids"][0]).count(model.config.image_token_id) == VISUAL


def test_loads_without_torchvision():
    """The processor falls back to PIL: torchvision is no core dependency."""
    program = """
import importlib.util, sys
sys.modules["torchvision"] = None
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("torchvision") else found(name, *rest)
from tokenprune.eval import shapes
model, processor = shapes.load()
sample = next(shapes.held_out(1))
word = shapes.answer(model, processor, [sample.image], [sample.question.text])
print(type(processor.image_processor).__name__, *word)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2


def test_answers_held_out_questions(embedded, samples):
    counts = accuracy(*embedded, samples)
    assert overall(counts) >= 0.95, counts


def test_answers_easy_vqa(embedded):
    pytest.importorskip("easy_vqa")
    counts = accuracy(*embedded, list(easy_vqa())[::40])
    assert overall(counts) >= 0.97, counts


def test_noise_is_answered_no_better_than_by_guessing(embedded, samples):
    """With the image gone, what remains is the commonest answer of each kind (a small sample may beat it by chance)."""
    rng = np.random.default_rng(0)
    blind = [
        shapes.Sample(Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)), sample.question)
        for sample in samples
    ]
    assert overall(accuracy(*embedded, blind)) <= overall(majority(samples)) + 0.06


def test_left_padding_changes_no_answer(embedded, samples):
    images, texts = [s.image for s in samples[:24]], [s.question.text for s in samples[:24]]
    assert len({len(text.split()) for text in texts}) > 1, "all of one length would not need padding"
    together = shapes.answer(*embedded, images, texts, batch_size=24)
    assert together == shapes.answer(*embedded, images, texts, batch_size=1)


def test_clip_shares_the_tower_and_finds_what_is_named(embedded):
    clip, words = shapes.load_clip()
    tower = embedded[0].model.vision_tower.state_dict()
    for name, weight in clip.vision_model.state_dict().items():
        assert torch.equal(weight, tower[name]), name
    ids = words(["what color is the star?", "how many objects are there?"], padding=True, return_tensors="pt")
    assert clip.get_text_features(**ids).pooler_output.shape == (2, clip.config.projection_dim)
    assert relevance_auc(clip, 40)["all"] > 0.8


def test_answer_refuses_unequal_lists(embedded, samples):
    with pytest.raises(ValueError, match="1 images and 2 questions"):
        shapes.answer(*embedded, [samples[0].image], ["what color is the star?", "is there a red star?"])


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="train one with"):
        shapes.load(folder=tmp_path)


def test_easy_vqa_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "easy_vqa":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"tokenprune-vlm\[eval\]"):
        next(easy_vqa())

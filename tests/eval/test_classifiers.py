"""The trained classifiers: they load through the Auto classes and answer; clips need the order of their frames."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

from tokenprune.eval import shapes
from tokenprune.eval.shapes import classifier_evaluate
from tokenprune.eval.shapes.classifier_evaluate import by_group, thirds
from tokenprune.eval.shapes.modeling import pixel_values
from tokenprune.eval.shapes.motion_data import MOTIONS
from tokenprune.eval.shapes.video_heldout import shuffled
from tokenprune.eval.shapes.vit_data import LABELS

MEBIBYTE = 2**20
FOLDERS = [shapes.VIT_CHECKPOINT, shapes.MOTION_CHECKPOINT]


@pytest.fixture(scope="module")
def vit():
    return shapes.load_vit()


@pytest.fixture(scope="module")
def motion():
    return shapes.load_motion()


@pytest.fixture(scope="module")
def pictures():
    return list(shapes.held_out_objects(200))


@pytest.fixture(scope="module")
def clips():
    return list(shapes.held_out_motions(200))


def share_right(found, samples):
    return np.mean([label == sample.label for label, sample in zip(found, samples, strict=True)])


def frames(samples):
    return [sample.pictures for sample in samples]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folders_are_small_and_complete(folder):
    names = {file.name for file in folder.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4 * MEBIBYTE


@pytest.mark.parametrize(
    ("folder", "auto", "kind", "labels"),
    [
        (shapes.VIT_CHECKPOINT, AutoModelForImageClassification, ViTForImageClassification, LABELS),
        (shapes.MOTION_CHECKPOINT, AutoModelForVideoClassification, VideoMAEForVideoClassification, MOTIONS),
    ],
)
def test_load_through_the_auto_classes(folder, auto, kind, labels):
    model = auto.from_pretrained(folder)
    assert type(model) is kind
    assert model.dtype == torch.bfloat16
    assert tuple(model.config.id2label.values()) == labels
    assert json.loads((folder / "config.json").read_text())["label2id"] == {name: i for i, name in enumerate(labels)}


def test_pictures_are_told(vit, pictures):
    assert share_right(shapes.classify(*vit, [one.picture for one in pictures]), pictures) >= 0.95


def test_clips_are_told_forwards_and_backwards(motion, clips):
    both = [*clips, *(one.reversed() for one in clips)]
    assert share_right(shapes.classify(*motion, frames(both)), both) >= 0.95


def test_clips_with_their_frames_out_of_order_are_not_told(motion, clips):
    some = [shuffled(one, seed) for seed, one in enumerate(clips[:100])]
    assert share_right(shapes.classify(*motion, frames(some)), some) <= 0.5


def test_processors_scale_as_in_training(vit, motion, pictures, clips):
    found = vit[1]([pictures[0].picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, pixel_values(torch.from_numpy(pictures[0].image)[None]))
    found = motion[1]([clips[0].pictures], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found[0], pixel_values(torch.from_numpy(clips[0].frames.copy())))


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_processors_take_any_size(folder, backend, vit, motion):
    if backend == "torchvision":
        pytest.importorskip("torchvision")
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    picture = Image.new("RGB", (90, 70), "red")
    if folder == shapes.VIT_CHECKPOINT:
        (label,) = shapes.classify(vit[0], processor, [picture])
    else:
        (label,) = shapes.classify(motion[0], processor, [[picture] * 16])
    assert label >= 0


def test_arrays_and_batches_change_no_answer(vit, motion, pictures, clips):
    together = shapes.classify(*vit, [one.picture for one in pictures[:10]])
    assert together == shapes.classify(*vit, [one.image for one in pictures[:10]], batch_size=3)
    together = shapes.classify(*motion, frames(clips[:7]))
    assert together == shapes.classify(*motion, [one.frames for one in clips[:7]], batch_size=3)


@pytest.mark.parametrize("name", ["vit", "motion"])
def test_a_missing_checkpoint_is_told(name, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"python -m tokenprune.eval.shapes.classifier_train {name} --out FOLDER"
    ):
        getattr(shapes, f"load_{name}")(folder=tmp_path)


def test_groups_are_counted():
    assert by_group([True, False, True], ["b", "a", "b"]) == {"a": (0, 1), "b": (2, 2)}
    assert [name.split()[0] for name in thirds([9, 1, 5, 2, 8, 5])] == [
        "largest", "smallest", "middle", "smallest", "largest", "middle"
    ]  # fmt: skip


def test_the_command_prints_both(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["classifier_evaluate", "--samples", "16"])
    monkeypatch.setenv("COLUMNS", "200")
    classifier_evaluate.main()
    told = capsys.readouterr().out
    for words in ("all pictures", "smallest third", "purple", "all clips", "backwards", "shuffled, pair"):
        assert words in told

"""Throughput is told as a ratio to the dense model of the same rounds, and absolutely on GPUs alone."""

import json

import pytest
import torch
from transformers import ViTForImageClassification

from tokenprune.eval import clock, vision_speed
from tokenprune.eval.vision_costs import probed, share
from tokenprune.eval.vision_speed import DENSE, HALF, SIZES, Size, model, policies, table

TINY = Size(16, 4, 2, 32, 32, 8)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(vision_speed, "SIZES", dict.fromkeys(SIZES, TINY))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("library", ["hf", "timm"])
def test_policies_take_up_to_half_of_the_flops(tiny, name, library):
    made = model(name, library).eval()
    assert isinstance(made, ViTForImageClassification) == (library == "hf" and name.startswith("ViT"))
    tower = probed(made, torch.randn(1, 3, 32, 32))
    assert (tower.total, len(tower.blocks)) == (16, 4)
    tried = policies(tower, has_class=not name.startswith("SigLIP"))
    half = max(one.r for key, one in tried.items() if key.startswith("tome"))
    shares = {key: share(one, tower) for key, one in tried.items()}
    assert max(value for key, value in shares.items() if f"r={half}" in key or "evit" in key) <= HALF
    assert ("evit" in "".join(tried)) == (not name.startswith("SigLIP"))


def test_the_shapes_are_those_of_their_names():
    tokens = {name: (size.image // size.patch) ** 2 for name, size in SIZES.items()}
    assert tokens == {"ViT-S": 196, "ViT-B": 196, "ViT-L": 196, "CLIP-L/336": 576, "SigLIP-so400m/384": 729}
    size = SIZES["ViT-B"]
    assert 12 * (4 * size.width**2 + 2 * size.width * size.inner) == 84_934_656


def test_the_command_writes_json_and_a_table(tiny, tmp_path, monkeypatch, capsys):
    given = ["--shape", "ViT-B", "--shape", "SigLIP-so400m/384", "--rounds", "2", "--batch", "2", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["vision_speed", *given, "--out", str(tmp_path)])
    vision_speed.main()
    result = json.loads((tmp_path / "vision_speed.json").read_text())
    assert {(row["shape"], row["library"]) for row in result["rows"]} == {
        ("ViT-B", "hf"),
        ("ViT-B", "timm"),
        ("SigLIP-so400m/384", "hf"),
    }
    for row in result["rows"]:
        assert "images_per_second" not in row
        assert row["range"][0] <= row["speed"] <= row["range"][1]
        assert (row["policy"] == DENSE) == (row["speed"] == row["flops"] == 1)
    text = (tmp_path / "vision_speed.md").read_text()
    assert "| ViT-B (17 tokens) | dense | 16 | 100% | 1 | 1 |" in text
    assert "| SigLIP-so400m/384 (16 tokens) | dense | 16 | 100% | 1 |  |" in text


def test_images_a_second_are_told_of_gpus():
    row = {
        "shape": "ViT-B", "library": "hf", "dtype": "float16", "tokens": 197, "policy": "tome, r=16", "left": 10,
        "flops": 0.49, "speed": 1.8, "range": [1.7, 1.9], "images_per_second": 3210.4,
    }  # fmt: skip
    text = table({"device": "GPU", "batch": 64, "rounds": 3, "rows": [row]})
    assert "|  | tome, r=16 | 10 | 49% | 1.80 (1.70 to 1.90), 3,210 images/s |" in text


def test_all_take_turns_and_first_calls_are_left_out():
    order, times = [], iter([9.0, 9.0, 2.0, 1.0, 4.0, 1.0, 6.0, 2.0])

    def call(name):
        order.append(name)
        return next(times)

    found = clock.in_turns({name: lambda name=name: call(name) for name in ("dense", "pruned")}, 3)
    assert order == ["dense", "pruned"] * 4
    assert found == {"dense": [2.0, 4.0, 6.0], "pruned": [1.0, 1.0, 2.0]}
    assert clock.ratio(found["dense"], found["pruned"]) == 3.0

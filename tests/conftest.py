import os
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test may depend on a network

import pytest
import torch
from PIL import Image, ImageFile

from tests import reference
from tokenprune import ProjectorPolicy, Selection
from tokenprune.eval.shapes.language import processor
from tokenprune.eval.shapes.modeling import build
from tokenprune.layers import Event
from tokenprune.policies.layer import LayerPolicy

torch.set_num_threads(1)  # tiny models: a second thread only waits

INSIDE = 2  # the layer that tokens leave where a test is about layers
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--golden-dir", type=Path, default=GOLDEN, help="folder whose .npz files test_golden.py checks")
    parser.addoption("--screenshots", type=Path, help="folder for pictures of the demo's page (docs/images)")


@pytest.fixture(autouse=True)
def whole_pictures(monkeypatch):
    """Importing lmms-eval has PIL take truncated files for the whole process: our own tests must not depend on it."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


@dataclass(kw_only=True)
class EveryThird(ProjectorPolicy):
    """Keeps places 1, 4, 7 ... of every unit, whatever they hold."""

    keep: int | float | None = 1 / 3
    rounding: str = "floor"

    def select(self, tokens, k):
        g, n = tokens.shape
        return Selection.subset(torch.arange(1, n, 3)[:k].expand(g, k))


@dataclass(kw_only=True)
class EveryThirdInside(LayerPolicy):
    """As `EveryThird`, in front of one layer."""

    keep: int | float | None = 1 / 3
    rounding: str = "floor"
    layer: int = INSIDE

    def events(self, depth):
        return (Event(drop=self.layer),)

    def select(self, tokens, k):
        g, n = tokens.shape
        return Selection.subset(torch.arange(1, n, 3)[:k].expand(g, k))


@pytest.fixture
def every_third():
    return EveryThird()


@pytest.fixture(params=["projector", "layer"])
def every_third_somewhere(request, every_third):
    """In front of the language model and in front of one of its layers; the reference then does it there, too."""
    if request.param == "projector":
        yield every_third
    else:
        with reference.dropping_at(INSIDE):
            yield EveryThirdInside()


def saved_model(folder, *, text_layers):
    """Save a randomly initialised thin copy of the embedded model, with its processor."""
    torch.manual_seed(0)
    build(width=24, heads=3, vision_layers=1, text_layers=text_layers).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of a model with one decoder layer."""
    return saved_model(tmp_path_factory.mktemp("tiny"), text_layers=1)


BROKEN = {
    "missing": "is no file",
    "folder": "is no file",
    "truncated": "cannot be decoded",
    "text": "is not an image",
    "empty": "is not an image",
}


@pytest.fixture(params=BROKEN)
def broken_image(request, tmp_path):
    """(path that is no usable image, what the error about it has to say)"""
    path = tmp_path / f"{request.param}.png"
    if request.param == "folder":
        path.mkdir()
    elif request.param == "truncated":
        Image.effect_noise((64, 64), 50).convert("RGB").save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif request.param != "missing":
        path.write_text("not an image" if request.param == "text" else "")
    return path, BROKEN[request.param]


@pytest.fixture
def answers(monkeypatch):
    """What a policy of a given class answers, call by call."""

    def watch(cls):
        seen, select = [], cls.select

        def noted(self, tokens, k):
            seen.append(select(self, tokens, k))
            return seen[-1]

        monkeypatch.setattr(cls, "select", noted)
        return seen

    return watch

"""The training of the classifiers: it begins as the CLIP tower, and an interrupted run ends as an uninterrupted one."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import VideoMAEForVideoClassification, ViTForImageClassification

from tokenprune.eval import shapes
from tokenprune.eval.shapes import classifier_train, modeling
from tokenprune.eval.shapes.classifier_train import TASKS, ClassifierTrainer
from tokenprune.eval.shapes.classifiers import build_motion, build_vit
from tokenprune.eval.shapes.modeling import pixel_values
from tokenprune.eval.shapes.stages import run
from tokenprune.eval.shapes.vit_data import object_batch


def tiny_vit():
    torch.manual_seed(0)
    return build_vit(modeling.build(width=16, heads=2, vision_layers=1).model.vision_tower, depth=2)


def tiny_motion():
    torch.manual_seed(0)
    return build_motion(width=12, depth=2, heads=2)


TINY = {
    name: replace(task, build=build, stage=replace(task.stage, steps=4, batch=2))
    for (name, task), build in zip(TASKS.items(), (tiny_vit, tiny_motion), strict=True)
}


@torch.inference_mode()
def test_an_image_classifier_begins_as_the_tower():
    tower = shapes.load()[0].model.vision_tower
    model = build_vit(tower).eval()
    pixels = pixel_values(object_batch(1000, 8)[0])
    tokens, normed = tower.embeddings(pixels), tower.pre_layrnorm(tower.embeddings(pixels))
    folded = model.vit.embeddings(pixels)
    torch.testing.assert_close(folded[:, 0], normed[:, 0])
    bias, deviation = tower.pre_layrnorm.bias, tokens[:, 1:].std(-1, unbiased=False, keepdim=True)
    common = (normed - bias)[:, 1:].norm(dim=-1) / (folded - bias)[:, 1:].norm(dim=-1) * deviation[..., 0]
    torch.testing.assert_close(common, common.mean().expand_as(common), rtol=1e-3, atol=0)
    probed = tower.embeddings(pixel_values(object_batch(0, 64)[0]))[:, 1:]
    torch.testing.assert_close(common.mean(), probed.std(-1, unbiased=False).mean(), rtol=1e-3, atol=0)
    exact = (folded[:, 1:] - bias) * common.mean() / deviation + bias
    torch.testing.assert_close(exact, normed[:, 1:], rtol=1e-3, atol=1e-3)

    states = model.vit(pixels, output_hidden_states=True).hidden_states
    depth = len(tower.encoder.layers)
    assert torch.equal(states[depth], states[-1]), "new layers begin as the identity"
    assert len(states) == depth + 4
    cosine = F.cosine_similarity(states[-1], tower(pixels).last_hidden_state, dim=-1)
    assert cosine.mean() > 0.985


@torch.inference_mode()
@pytest.mark.parametrize("name", TINY)
def test_what_is_minimised_is_the_models_own_loss_and_that_of_the_tokens(name):
    task = TINY[name]
    trainer, batch = ClassifierTrainer(task.build(), task.dense, compiled=False), task[0]
    for head in trainer.heads:
        head.weight.zero_()
        head.bias.zero_()
    seen, labels, shown = batch
    pixels = pixel_values(seen.flatten(0, -4)).unflatten(0, seen.shape[:-3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = trainer.model(pixels, labels=labels)
    loss, right = trainer.loss(task.stage, batch)
    expected = own.loss.float() + sum(math.log(things) for things in task.dense)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    assert torch.equal(right["right"] > 0, own.logits.argmax(-1) == labels)

    head = trainer.heads[-1]
    head.weight.normal_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = trainer.model.base_model(pixels).last_hidden_state
        told = head(hidden[:, 1:] if name == "vit" else hidden).float().log_softmax(-1).flatten(0, 1)
    things = shown[..., -1].flatten()
    weight = torch.where(things == 0, 0.1, 1.0)
    lost = -(weight * told.gather(1, things[:, None])[:, 0]).sum() / weight.sum()
    expected = expected - math.log(task.dense[-1]) + lost
    torch.testing.assert_close(trainer.loss(task.stage, batch)[0], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", TINY)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(name, tmp_path):
    task = TINY[name]

    class Interrupted(Exception):
        pass

    def stop(stage, done):
        if done == 2:
            raise Interrupted

    def train(file, export):
        trainer = ClassifierTrainer(task.build(), task.dense, compiled=False)
        before = {key: weight.clone() for key, weight in trainer.state()["model"].items()}
        run(trainer, (task.stage,), file, 1, lambda *_: None, export, lambda *at: task.batches(at[2], workers=0))
        return before, trainer.state()["model"]

    before, whole = train(tmp_path / "whole.pt", lambda *_: None)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts.pt", stop)
    resumed = train(tmp_path / "parts.pt", lambda *_: None)[1]
    for key, weight in whole.items():
        assert torch.equal(weight, resumed[key]), key
        assert not torch.equal(weight, before[key]), f"{key} learns"


def test_the_rate_rises_stays_and_falls_in_the_second_half():
    task = TINY["motion"]
    trainer, stage = ClassifierTrainer(task.build(), task.dense, compiled=False), replace(task.stage, steps=1000)
    optimizers, rates = trainer.optimizers(stage), []
    for done in (0, 49, 99, 500, 750, 999):
        optimizers.step(sum(p.square().sum() for p in optimizers.parameters), done, stage)
        rates.append(optimizers.all[0].param_groups[0]["lr"] / stage.rate)
    assert rates == pytest.approx([0.01, 0.5, 1, 1, 0.5, 0.002])
    decays = {p.ndim > 1: group["weight_decay"] for group in optimizers.all[0].param_groups for p in group["params"]}
    assert decays == {True: 0.05, False: 0.0}


@pytest.mark.parametrize(
    ("name", "load", "kind"),
    [
        ("vit", "load_vit", ViTForImageClassification),
        ("motion", "load_motion", VideoMAEForVideoClassification),
    ],
)
def test_the_command_writes_a_checkpoint(name, load, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classifier_train, "TASKS", TINY)
    monkeypatch.setattr(classifier_train, "SAVE_EVERY", 2)
    plain = ClassifierTrainer.__init__
    monkeypatch.setattr(ClassifierTrainer, "__init__", lambda self, model, dense, _: plain(self, model, dense, False))
    monkeypatch.setattr("sys.argv", ["classifier_train", name, "--out", str(tmp_path / "new"), "--steps", "2"])
    classifier_train.main()
    assert f"{name} 2/2" in capsys.readouterr().out
    model, processor = getattr(shapes, load)(folder=tmp_path / "new")
    assert type(model) is kind
    seen, labels, _ = TINY[name][0]
    assert len(shapes.classify(model, processor, seen.numpy())) == len(labels)
    saved = torch.load(tmp_path / "new" / "state.pt", weights_only=True)
    for key, weight in saved["trainer"]["model"].items():
        torch.testing.assert_close(model.state_dict()[key], weight, rtol=0.01, atol=1e-3)

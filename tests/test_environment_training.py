"""Training through a pruned forward: gradients equal those of the shortened inputs, to the decoder and to the tower."""

import peft
import pytest
import torch

import tokenprune
from tests import reference
from tests.default_policies import POLICIES
from tests.families import BY_NAME, LLAVA, QWEN2_5_VL
from tokenprune import FastV, PyramidDrop

both = pytest.mark.parametrize("family", [LLAVA, QWEN2_5_VL], ids=lambda family: family.name)
WEIGHTS = {
    "llava": ("model.multi_modal_projector.linear_1.weight", "model.vision_tower.embeddings.patch_embedding.weight"),
    "qwen2_5_vl": ("model.visual.merger.mlp.0.weight", "model.visual.patch_embed.proj.weight"),
}
DECODER = ("model.language_model.layers.0.self_attn.q_proj.weight", "lm_head.weight")


def supervised(inputs):
    """The inputs with labels: every word but the first, which only padding could predict."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return {**inputs, "labels": ids.masked_fill((ids >= 140) | (mask.cumsum(1) <= 1), -100)}


def gradients(model, names):
    weights = dict(model.named_parameters())
    found = [weights[name].grad.clone() for name in names]
    model.zero_grad(set_to_none=True)
    return found


def losses_by_hand(model, batch, keep, mix=None, *, layer=None, renumber=False):
    """Loss of a batch whose decoder inputs are cut by hand, sample by sample, with a graph back to the pixels.

    Args:
        layer: in front of which `keep` holds, numbered anew there or not; None: in front of the decoder.
    """
    noted = {}

    def note(module, args, kwargs):
        noted.update(kwargs)

    hook = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    model(**{name: value for name, value in batch.items() if name != "labels"})
    hook.remove()
    positions = noted["position_ids"]
    if positions is None:
        positions = torch.arange(keep.shape[1]).expand(keep.shape)
    total, words = 0, 0
    for b, real in enumerate(batch["attention_mask"].bool()):
        kept = (keep[b] & real).nonzero()[:, 0]
        at = kept if layer is None else real.nonzero()[:, 0]
        later = [] if layer is None else [(layer, keep[b, at].nonzero()[:, 0], {})]
        x = noted["inputs_embeds"][b]
        x = x if mix is None else mix[b] @ x
        with reference.dropping(model.get_decoder(), len(at), later, renumber, prompt=len(at)):
            out = model.get_decoder()(
                inputs_embeds=x[None, at],
                position_ids=positions[..., b : b + 1, :][..., at],
                attention_mask=torch.ones(1, len(at)).long(),
                use_cache=False,
            )
        logits = model.lm_head(out.last_hidden_state)[0]
        for place, label in enumerate(batch["labels"][b].tolist()):
            before = int((kept < place).sum()) - 1  # the last kept token before the word predicts it
            if label >= 0:
                total = total - logits[before].log_softmax(-1)[label]
                words += 1
    return total / words


TRAINED = {
    "divprune": lambda: POLICIES["divprune"](keep=0.3),
    "pool": lambda: POLICIES["pool"](keep=0.3),
    "fastv": lambda: FastV(layer=2, keep=0.3),
    "pyramiddrop": lambda: PyramidDrop(layers=(2,), keeps=(0.3,)),
}


@both
@pytest.mark.parametrize("name", TRAINED)
def test_gradients_equal_the_manual_computation(family, name):
    model, batch = family.model(), supervised(family.inputs((2, 1)))
    names = (*DECODER, *WEIGHTS[family.name])
    model(**batch).loss.backward()
    dense = gradients(model, names)
    with tokenprune.wrap(model, TRAINED[name]()) as handle:
        loss = model(**batch).loss
        loss.backward()
        pruned, report = gradients(model, names), handle.report()
    mix = reference.mixing(batch, report) if name == "pool" else None
    inside = {"layer": 2, "renumber": report.positions == "compact"} if report.events else {}
    expected = losses_by_hand(model, batch, reference.keep_mask(batch, report), mix, **inside)
    expected.backward()
    assert abs(loss - expected) < 1e-5
    for weight, got, want, unpruned in zip(names, pruned, gradients(model, names), dense, strict=True):
        assert want.abs().max() > 0, weight
        assert (got - want).abs().max() < 1e-4 * want.abs().max(), weight
        assert (got - unpruned).abs().max() > 1e-2 * want.abs().max(), weight


@both
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("name", TRAINED)
def test_gradient_checkpointing(family, name, reentrant):
    """Layers that are run again during backward get the short inputs again."""
    model, batch = family.model().train(), supervised(family.inputs((2, 1)))
    names = (*DECODER, *WEIGHTS[family.name])
    with tokenprune.wrap(model, TRAINED[name]()) as handle:
        model(**batch, use_cache=False).loss.backward()
        expected, kept = gradients(model, names), handle.report().kept
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
        again = []
        hook = (
            model.get_decoder()
            .layers[-1]
            .self_attn.register_forward_hook(lambda module, args, out: again.append(out[0].shape[1]))
        )
        model(**batch, use_cache=False).loss.backward()
        hook.remove()
        assert handle.report().kept == kept
    assert len(again) == 2
    assert again[0] == again[1] < batch["input_ids"].shape[1]
    for weight, got, want in zip(names, gradients(model, names), expected, strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max(), weight


def test_a_policy_may_learn():
    """Gradients reach what a policy multiplies kept features with."""
    model, batch = LLAVA.model(), supervised(LLAVA.inputs((2, 1)))
    gain = torch.nn.Parameter(torch.ones(()))

    class Scaled(tokenprune.ProjectorPolicy):
        def select(self, tokens, k):
            g, n = tokens.shape
            indices = torch.arange(k).expand(g, k)
            source = torch.arange(n).clamp_max(k - 1).expand(g, n)
            weights = torch.where(torch.arange(n) < k, 1.0, 0.0).expand(g, n)
            return tokenprune.Selection(
                indices=indices, features=tokens.features[:, :k] * gain, source=source, weights=weights
            )

    with tokenprune.wrap(model, Scaled(keep=5)):
        model(**batch).loss.backward()
        eps = 1e-2
        with torch.no_grad():
            gain += eps
            above = model(**batch).loss
            gain -= 2 * eps
            below = model(**batch).loss
    assert abs(gain.grad - (above - below) / (2 * eps)) < 1e-2 * max(1.0, abs(float(gain.grad)))
    assert gain.grad != 0


@both
def test_low_rank_adapters_learn(family):
    """Only the adapter gets gradients, and steps on them lower the loss of the pruned model."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model, batch = peft.get_peft_model(family.model(), config), supervised(family.inputs((2, 1)))
    with tokenprune.wrap(model, "divprune", keep=0.3):
        optimiser = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
        losses = []
        for _ in range(4):
            loss = model(**batch).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1e-3
    with_gradients = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert with_gradients
    assert all("lora" in name for name in with_gradients)


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "qwen3_5", "internvl"])
def test_other_mechanisms_have_gradients(name):
    """DeepStack, ready-made masks and recurrent layers: finite, and nonzero from the head down to the tower."""
    family = BY_NAME[name]
    model, batch = family.model().train(), supervised(family.inputs((2, 1)))
    with tokenprune.wrap(model, "divprune", keep=0.3):
        loss = model(**batch).loss
        loss.backward()
    assert loss.isfinite()
    weights = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    assert all(grad.isfinite().all() for grad in weights.values())
    tower = next(
        iter(key for key, grad in weights.items() if ("vision" in key or "visual" in key) and grad.any()), None
    )
    assert tower is not None
    assert any(grad.any() for key, grad in weights.items() if "layers.0." in key and "language_model" in key)

"""A pruned model whose weights are elsewhere, or others: offloaded, quantised, sparse, fewer, with adapters."""

import bitsandbytes
import peft
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode

import tokenprune
from tests import reference
from tests.families import BY_NAME, LLAVA, QWEN2_5_VL
from tests.probes import TOLERANCE, generate, logits, new_tokens, same, snapshot, spy
from tokenprune import errors
from tokenprune.stages.cache import CacheState, Life
from tokenprune.stages.gather import Cut, shorten_inputs

CPU = torch.device("cpu")
both = pytest.mark.parametrize("family", [LLAVA, QWEN2_5_VL], ids=lambda family: family.name)


def prefix(model, module):
    return next(name for name, one in model.named_modules() if one is module)


def sharded(model, folder):
    """Every other decoder layer on the disk, all else on the CPU, as `device_map="auto"` leaves a model too large."""
    layers = prefix(model, model.get_decoder().layers)
    places = {name: "cpu" for name, _ in model.named_parameters() if not name.startswith(layers)}
    places |= {f"{layers}.{i}": ("cpu", "disk")[i % 2] for i in range(len(model.get_decoder().layers))}
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


OFFLOADS = {
    "cpu": lambda model, folder: cpu_offload(model, execution_device=CPU),
    "disk": lambda model, folder: disk_offload(model, folder, execution_device=CPU),
    "sharded": sharded,
}


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # accelerate's list of single parameters
class TestOffloading:
    """accelerate moves weights and arguments with hooks of its own, which must neither lose nor change anything."""

    @pytest.mark.parametrize("first", ["wrap", "offload"])
    @pytest.mark.parametrize(
        ("name", "kind"),
        [(name, kind) for name in ("llava", "qwen2_5_vl") for kind in OFFLOADS]
        + [(name, "sharded") for name in ("qwen2_5_vl-video", "qwen3_vl", "gemma3")],
    )
    def test_offloaded_equals_loaded(self, name, kind, first, tmp_path):
        family = BY_NAME[name]
        model, inputs = family.model(), family.inputs((2, 1))
        dense = logits(generate(model, inputs))
        with tokenprune.wrap(model, "divprune", keep=4) as handle:
            expected, plain, kept = logits(generate(model, inputs)), model(**inputs).logits, handle.report().kept
        if first == "wrap":
            handle = tokenprune.wrap(model, "divprune", keep=4)
        OFFLOADS[kind](model, tmp_path)
        if first == "offload":
            handle = tokenprune.wrap(model, "divprune", keep=4)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert torch.equal(logits(generate(model, inputs)), expected)
        assert torch.equal(model(**inputs).logits, plain)
        assert handle.report().kept == kept
        handle.remove()
        assert torch.equal(logits(generate(model, inputs)), dense)

    def test_tower_features_survive(self, tmp_path):
        """`generate` encodes images before the model is called, and accelerate copies what it then passes."""
        seen, model, inputs = [], LLAVA.model(), LLAVA.inputs((2, 1))
        sharded(model, tmp_path)
        with tokenprune.wrap(model, tokenprune.CDPruner(keep=4, relevance=spy(seen, {"encoder", "features"}))):
            model.generate(**inputs, max_new_tokens=2)
            model(**inputs)
        assert torch.equal(seen[0].encoder, seen[1].encoder)
        assert torch.equal(seen[0].features, seen[1].features)

    def test_tiles_packed_with_a_newline(self, tmp_path):
        family = BY_NAME["llava_next"]
        model, inputs = family.model(), family.inputs((2, 1))
        with tokenprune.wrap(model, "divprune", keep=0.25) as handle:
            expected, kept = logits(generate(model, inputs)), handle.report().kept
        with tokenprune.wrap(sharded(model, tmp_path), "divprune", keep=0.25) as handle:
            assert torch.equal(logits(generate(model, inputs)), expected)
            assert handle.report().kept == kept

    @pytest.mark.parametrize("prepared", [False, True], ids=["mask-2d", "mask-4d"])
    def test_every_tensor_stays_on_its_device(self, prepared):
        """Embeddings, mask and positions may lie on three devices; fake tensors refuse to mix them."""
        keep = torch.tensor([[True, False, True, True, False], [False, True, False, True, False]])
        cut = Cut.from_keep(keep, keep.sum(1))
        with FakeTensorMode(allow_non_fake_inputs=True):
            mask = torch.ones(2, 1, 5, 5, device="cuda:1") if prepared else torch.ones(2, 5, device="cuda:1").long()
            given = {"inputs_embeds": torch.ones(2, 5, 8, device="cuda:0"), "attention_mask": mask}
            positions = torch.ones(3, 2, 5, device="cuda:2").long()
            short = shorten_inputs(given, cut, position_ids=positions, past=0, attention="sdpa")
            places = {name: str(value.device) for name, value in short.items()}
            restored = cut.restore(torch.ones(2, 3, 8, device="cuda:3"))
        assert places == {"inputs_embeds": "cuda:0", "attention_mask": "cuda:1", "position_ids": "cuda:2"}
        assert short["position_ids"].shape == (3, 2, 3)
        assert str(restored.device) == "cuda:3"

    def test_masks_of_continued_calls_stay_on_their_device(self):
        with FakeTensorMode(allow_non_fake_inputs=True):
            state = CacheState(Life(), torch.ones(2, 6, device="cuda:0").bool(), removed=4, all_valid=False)
            mask = torch.ones(2, 11, device="cuda:1").long()
            assert str(state.physical_mask(mask, 6, 1).device) == "cuda:1"


def reference_difference(family, model, *, keep=0.3, policy="divprune"):
    """Largest difference of a pruned `generate` from dropping the rows by hand, and from the unpruned model."""
    inputs = family.inputs((2, 1))
    dense = logits(generate(model, inputs))
    with tokenprune.wrap(model, policy, keep=keep) as handle:
        pruned, report = generate(model, inputs), handle.report()
    assert 0 < report.kept < report.total
    expected = reference.logits(model, inputs, reference.keep_mask(inputs, report), new_tokens(pruned, inputs))
    return (logits(pruned) - expected).abs().max(), (logits(pruned) - dense).abs().max()


def linears(model):
    """Linear layers of the decoder, as (parent, name, layer)."""
    decoder = model.get_decoder()
    return [
        (parent, name, layer)
        for parent in decoder.modules()
        for name, layer in parent.named_children()
        if type(layer) is torch.nn.Linear
    ]


def bitsandbytes_layers(model, kind, **more):
    for parent, name, layer in linears(model):
        quantised = kind(layer.in_features, layer.out_features, bias=layer.bias is not None, **more)
        quantised.load_state_dict(layer.state_dict())
        setattr(parent, name, quantised.to("cpu"))  # quantises
    assert not linears(model)


def bitsandbytes_8bit(model):
    bitsandbytes_layers(model, bitsandbytes.nn.Linear8bitLt, has_fp16_weights=False)


def bitsandbytes_4bit(model):
    bitsandbytes_layers(model, bitsandbytes.nn.Linear4bit, quant_type="nf4", compute_dtype=torch.float32)


def half_zero(model):
    """2:4 sparsity: the two smallest of every four weights of a row are zero."""
    for _, _, layer in linears(model):
        fours = layer.weight.data.view(layer.weight.shape[0], -1, 4)
        fours.scatter_(2, fours.abs().topk(2, largest=False).indices, 0)


def shallow(model):
    """Two of four layers are gone, as depth pruning leaves a model."""
    decoder = model.get_decoder()
    decoder.layers = torch.nn.ModuleList([decoder.layers[0], decoder.layers[3]])
    for number, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = number
    config = model.config.get_text_config()
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0], config.layer_types[3]]


class TestChangedWeights:
    """Nothing reads weights, so layers of another kind, sparse ones and fewer ones make no difference."""

    @both
    @pytest.mark.parametrize("change", [bitsandbytes_8bit, bitsandbytes_4bit, half_zero, shallow])
    def test_pruned_equals_the_manual_computation(self, family, change):
        model = family.model()
        change(model)
        difference, effect = reference_difference(family, model)
        assert difference < TOLERANCE
        assert effect > 1e-2

    def test_the_report_counts_the_layers_that_are_left(self):
        model = LLAVA.model()
        with tokenprune.wrap(model, "divprune", keep=4) as handle:
            model(**LLAVA.inputs())
            whole = handle.report().cost()["kv_bytes_pruned"]
        shallow(model)
        with tokenprune.wrap(model, "divprune", keep=4) as handle:
            model(**LLAVA.inputs())
        assert 2 * handle.report().cost()["kv_bytes_pruned"] == whole


def adapted(model):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def supervised(inputs):
    ids = inputs["input_ids"]
    return {**inputs, "labels": ids.masked_fill((ids >= 140) | (inputs["attention_mask"] == 0), -100)}


WHO = {
    "peft model": lambda outside: outside,
    "tuner": lambda outside: outside.base_model,
    "model inside": lambda outside: outside.get_base_model(),
}


class TestAdapters:
    """LoRA by PEFT, which is the same model with its adapter merged into the weights."""

    @both
    @pytest.mark.parametrize("who", [*WHO, "before peft"])
    def test_an_adapter_equals_its_merged_weights(self, family, who):
        inputs, merged = family.inputs((2, 1)), adapted(family.model()).merge_and_unload()
        with tokenprune.wrap(merged, "divprune", keep=4) as handle:
            expected, units = logits(generate(merged, inputs)), handle.report().units
            loss = merged(**supervised(inputs)).loss
        model = family.model()
        if who == "before peft":
            handle, outside = tokenprune.wrap(model, "divprune", keep=4), adapted(model)
        else:
            outside = adapted(model)
            handle = tokenprune.wrap(WHO[who](outside), "divprune", keep=4)
        assert (logits(generate(outside, inputs)) - expected).abs().max() < TOLERANCE
        assert [unit.indices.tolist() for unit in handle.report().units] == [unit.indices.tolist() for unit in units]
        out = outside(**supervised(inputs))
        assert abs(out.loss - loss) < TOLERANCE
        assert out.logits.shape[:2] == inputs["input_ids"].shape
        with outside.disable_adapter():
            bare = logits(generate(outside, inputs))
        assert (bare - expected).abs().max() > 1e-2
        with pytest.raises(errors.AlreadyWrappedError):
            tokenprune.wrap(outside, "uniform", keep=4)
        handle.remove()
        assert (logits(generate(outside, inputs)) - logits(generate(merged, inputs))).abs().max() < TOLERANCE

    @both
    def test_merging_under_a_handle(self, family):
        inputs, outside = family.inputs((2, 1)), adapted(family.model())
        with tokenprune.wrap(outside, "divprune", keep=4) as handle:
            expected = logits(generate(outside, inputs))
            merged = outside.merge_and_unload()
            assert (logits(generate(merged, inputs)) - expected).abs().max() < TOLERANCE
            assert handle.report().kept == 12

    def test_remove_leaves_no_trace(self):
        outside, inputs = adapted(LLAVA.model()), LLAVA.inputs()
        outside(**inputs)
        before = snapshot(outside)
        with tokenprune.wrap(outside, "divprune", keep=4):
            outside(**inputs)
            assert not same(before, snapshot(outside))
        assert same(before, snapshot(outside))

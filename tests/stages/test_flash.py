"""Flash attention reads gaps in position_ids as borders of packed sequences; a pruned call must say that it is one.

No flash kernel runs on a CPU, so a stand-in attention keeps transformers' own rules for masks and packing.
"""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence

import tokenprune
from tests import probes, reference
from tests.families import LLAVA
from tokenprune.stages.bias import in_channels

NAME = "tokenprune_test_flash"


def flash_rules(module, query, key, value, attention_mask, scaling=None, position_ids=None, **kwargs):
    """Causal attention over what flash attention would attend to: [B, q, H, D]"""
    batch, heads, new, _ = query.shape
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    total = key.shape[2]
    seen = torch.ones(new, total).tril(total - new).bool().expand(batch, 1, -1, -1)
    if attention_mask is not None:
        assert attention_mask.ndim == 2
        seen = seen & attention_mask[:, None, None, -total:].bool()
    elif "cu_seq_lens_k" in kwargs:
        assert kwargs["cu_seq_lens_k"].tolist() == [0, total]
        assert kwargs["cu_seq_lens_q"].tolist() == [0, new]
    elif new > 1 and _is_packed_sequence(position_ids, batch):
        starts = (position_ids[0].diff(prepend=position_ids[0, :1] - 1) != 1).cumsum(0)
        segments = torch.cat([starts.new_full((total - new,), -1), starts])
        seen = seen & (segments[None, :] == starts[:, None])
    scores = (query @ key.mT * scaling).masked_fill(~seen, torch.finfo(query.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


@pytest.fixture
def every_third(every_third_somewhere):
    return every_third_somewhere


@pytest.fixture
def model():
    AttentionInterface.register(NAME, flash_rules)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    model = LLAVA.model()
    model.model.language_model.config._attn_implementation = NAME
    return model


@pytest.mark.parametrize("images", [(1,), (2, 1)], ids=str)
def test_generate(model, images, every_third):
    inputs = LLAVA.inputs(images)
    keep = probes.every_third(LLAVA, LLAVA.model(), images)
    with tokenprune.wrap(model, every_third):
        out = probes.generate(model, inputs)
    expected = reference.logits(LLAVA.model(), inputs, keep, probes.new_tokens(out, inputs))
    assert (probes.logits(out) - expected).abs().max() < LLAVA.tolerance


def test_new_image_on_a_cache(model, every_third):
    both = LLAVA.inputs((2,))
    split = int((both["input_ids"][0] == 150).nonzero()[36, 0]) - 1
    keep = probes.every_third(LLAVA, LLAVA.model(), (2,))
    ids, pixels = both["input_ids"], both["pixel_values"]
    with tokenprune.wrap(model, every_third):
        first = model(input_ids=ids[:, :split], pixel_values=pixels[:1], use_cache=True)
        out = model(input_ids=ids[:, split:], pixel_values=pixels[1:], past_key_values=first.past_key_values)
    expected = reference.logits(LLAVA.model(), both, keep, out.logits[:, -1:].argmax(-1))[:, 0]
    assert (out.logits[:, -1] - expected).abs().max() < LLAVA.tolerance


def bidirectional(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """What a flash kernel does in a tower: no mask, one width for all, a multiple of 8; [B, q, H, D]"""
    assert attention_mask is None
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0
    return ((query @ key.mT * scaling).softmax(-1) @ value).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_of_merged_tokens_count_in_a_kernel_that_takes_no_mask(dtype):
    """They travel in further channels of queries and keys."""
    AttentionInterface.register(NAME, bidirectional)
    query, key, value = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    bias = torch.tensor([1, 2, 3, 5, 7, 11, 13, 200, 1.0]).log()[None, None, None]
    expected = (query.float() @ key.float().mT * 0.3 + bias).softmax(-1) @ value.float()
    wide = in_channels(query, key, value, bias, 0.3)
    found = bidirectional(None, *(x.float() for x in wide), None, scaling=0.3)[0].transpose(1, 2)
    assert (found[..., :8] - expected).abs().max() < 1e-5
    assert (found[..., 8:] == 0).all()


def test_a_tower_with_flash_attention_merges_as_with_sdpa():
    widths = []

    def kernel(module, query, *given, **kwargs):
        widths.append(query.shape[-1])
        return bidirectional(module, query, *given, **kwargs)

    AttentionInterface.register(NAME, kernel)
    model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
    with tokenprune.wrap(model, tokenprune.ToMe(r=3)):
        expected = model(**inputs).logits
    model.model.vision_tower.config._attn_implementation = NAME
    with tokenprune.wrap(model, tokenprune.ToMe(r=3)):
        found = model(**inputs).logits
    assert widths == [8, 16, 16]  # the sizes are all one in the first of three layers
    assert (found - expected).abs().max() < LLAVA.tolerance
    with tokenprune.wrap(model, tokenprune.ToMe(r=3, proportional=False)):
        assert (model(**inputs).logits - expected).abs().max() > 100 * LLAVA.tolerance

"""The rows a policy reads are those of transformers' own attention maps, in every family, and no more is computed."""

from dataclasses import dataclass, field

import pytest
import torch

import tokenprune
from tests import reference
from tests.allocations import MIB, Allocations
from tests.families import BY_NAME, FAMILIES, LLAVA, REFUSED_INSIDE
from tests.families.base import CLIP
from tokenprune import AdaptInfer, Event, FastV, HiMAP, LayerPolicy, PyramidDrop, SparseVLM, UnsupportedModelError
from tokenprune.errors import UnsupportedPolicyError
from tokenprune.stages import rows

READ = 1  # the layer
# Types of layers that compute no softmax over all keys: with an index, or without keys
APART = ("linear_attention", "conv", "moe", "indexed_attention")


@dataclass(kw_only=True)
class Look(LayerPolicy):
    """Notes every probability of the rows asked for, [B, H, R, L], and keeps all tokens."""

    everywhere = True
    rows: str = "text"
    layer: int = READ
    again: bool = False
    keep: float = 1.0
    seen: list = field(default_factory=list)

    def events(self, depth):
        return (Event(drop=self.layer + (not self.again), score=self.layer, rows=self.rows),)

    def raters(self, x, visual, text):
        return text & (torch.arange(x.shape[1]) % 2 == 0)

    def score(self, attention, event):
        blocks = [block for _, block in attention.blocks()]
        self.seen.append((attention, torch.cat(blocks, 2)))
        return attention.total()

    def select(self, tokens, k):
        return tokenprune.Selection.subset(torch.arange(k).expand(tokens.shape[0], k))


def look(model, inputs, **fields):
    policy = Look(**fields)
    with tokenprune.wrap(model, policy), torch.no_grad():
        model(**inputs)
    return policy.seen[0]


def types(model):
    return getattr(reference.text_decoder(model).config, "layer_types", None) or ["full_attention"] * 4


def maps(model, inputs, layer=READ):
    """[B, H, L, L] by eager attention. Recurrent layers and convolutions answer none."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(**inputs, output_attentions=True).attentions
    recurrent = ("linear_attention", "conv", "moe")
    return found[layer - sum(kind in recurrent for kind in types(model)[:layer])]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_are_those_of_the_maps(family):
    model, inputs = family.model(), family.inputs((2, 1))
    if (reason := REFUSED_INSIDE.get(family.model_type)) is not None:
        with pytest.raises(UnsupportedModelError, match=reason):
            look(model, inputs)
        return
    layer = next((i for i in (1, 2, 0) if types(model)[i] not in APART), None)
    if layer is None:
        with pytest.raises(UnsupportedPolicyError, match="these do: none"):
            look(model, inputs)
        return
    attention, found = look(model, inputs, layer=layer)
    expected = maps(model, inputs, layer)
    for b, (places, mask) in enumerate(zip(attention.rows, attention.row_mask, strict=True)):
        assert mask.any()
        assert (found[b][:, mask] - expected[b][:, places[mask]]).abs().max() < 2e-5
        assert found[b][:, ~mask].abs().max() == 0 if (~mask).any() else True
    assert (expected - expected.flip(1)).abs().max() > 1e-3  # heads differ


@pytest.mark.parametrize("which", ["last", "text", "visual", "raters"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("again", [False, True])
def test_which_rows(which, attention, again):
    model, inputs = LLAVA.model(attention=attention), LLAVA.inputs((2, 1))
    seen, found = look(model, inputs, rows=which, again=again)
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    image, place = reference.visual(inputs), torch.arange(ids.shape[1])
    behind = real & (place > torch.where(image, place, -1).amax(1, keepdim=True))
    last = place == place.masked_fill(~behind, -1).amax(-1, keepdim=True)
    expected = {"last": last, "text": behind, "visual": image, "raters": behind & (place % 2 == 0)}[which]
    assert all(
        places[mask].tolist() == row.nonzero()[:, 0].tolist()
        for places, mask, row in zip(seen.rows, seen.row_mask, expected, strict=True)
    )
    eager = maps(model, inputs)
    for b in range(2):
        assert (found[b][:, seen.row_mask[b]] - eager[b][:, expected[b]]).abs().max() < 2e-6


def test_a_right_padded_batch():
    """The last valid token of every prompt, never the last of the batch."""
    model, left = LLAVA.model(), LLAVA.inputs((2, 1))
    pad = int((left["attention_mask"][1] == 0).sum())
    inputs = dict(left)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.stack([left[name][0], left[name][1].roll(-pad)])
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    seen, found = look(model, inputs, rows="last")
    assert seen.rows[:, 0].tolist() == [inputs["input_ids"].shape[1] - 1, inputs["input_ids"].shape[1] - 1 - pad]
    expected = maps(model, inputs)
    for b in range(2):
        assert (found[b, :, 0] - expected[b][:, seen.rows[b, 0]]).abs().max() < 2e-6


def test_blocks_do_not_change_the_rows(monkeypatch):
    model, inputs = LLAVA.model(), LLAVA.inputs((2, 1))
    _, whole = look(model, inputs, rows="visual")
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", 1)
    attention, one = look(model, inputs, rows="visual")
    assert len(list(attention.blocks())) == attention.rows.shape[1] > 1
    assert (whole - one).abs().max() < 1e-6


def test_windows_softcaps_and_sinks():
    """Flash attention is handed them as numbers, with masks [B, K]; here against the formula, written out."""
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 4, 9, 8, generator=generator), torch.randn(2, 2, 12, 8, generator=generator)
    mask, sinks = torch.ones(2, 12).long(), torch.randn(4, generator=generator)
    mask[1, :4] = 0
    here = torch.ones(2, 9, dtype=torch.bool)
    attention = rows.LayerAttention(
        rows=torch.tensor([[3, 8], [5, 8]]),
        row_mask=torch.ones(2, 2, dtype=torch.bool),
        visual=here,
        text=here,
        place=torch.arange(9).expand(2, 9),
        heads=4,
        query=query,
        keys=keys,
        mask=mask,
        options={"scaling": 0.7, "softcap": 1.5, "s_aux": sinks, "sliding_window": 5},
        first=3,
    )
    (_, found), *_ = attention.blocks()
    for b, places in enumerate(attention.rows.tolist()):
        for r, place in enumerate(places):
            for h in range(4):
                logits = 1.5 * torch.tanh(keys[b, h // 2] @ query[b, h, place] * 0.7 / 1.5)
                seen = [j for j in range(12) if mask[b, j] and place + 3 - 5 < j <= place + 3]
                weights = torch.cat([logits[seen], sinks[h : h + 1]]).softmax(-1)
                expected = torch.zeros(12)
                expected[seen] = weights[:-1]
                assert (found[b, h, r] - expected[3:]).abs().max() < 1e-6


def test_a_row_of_a_later_turn_sees_the_earlier_one():
    """Normalised over all visible keys, those of the cache too."""
    model, inputs = LLAVA.model(), LLAVA.inputs((1,))
    length = inputs["input_ids"].shape[1]
    twice = {
        "input_ids": inputs["input_ids"].repeat(1, 2),
        "attention_mask": inputs["attention_mask"].repeat(1, 2),
        "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1),
    }
    expected = maps(LLAVA.model(), twice)[0][:, -1, length:]
    for again in (False, True):
        policy = Look(rows="last", again=again)
        with tokenprune.wrap(model, policy), torch.no_grad():
            cache = model(**inputs, use_cache=True).past_key_values
            model(**{**inputs, "attention_mask": twice["attention_mask"]}, past_key_values=cache)
        assert (policy.seen[1][1][0, :, 0] - expected).abs().max() < 2e-6


@pytest.mark.parametrize(
    "policy", [FastV(layer=1, keep=0.5), PyramidDrop(), SparseVLM(), HiMAP(), AdaptInfer()], ids=repr
)
def test_nothing_of_size_n_by_n_is_held(policy):
    """4,096 visual tokens: one head's map would be 64 MiB, and what is held besides is linear in N."""
    side, patch = 64, 4
    family = BY_NAME["llava"]
    model = family.model()
    config = model.config
    config.vision_config.image_size, config.vision_config.patch_size = side * patch, patch
    torch.manual_seed(0)
    model = type(model)(config).eval()
    assert CLIP["patch_size"] == patch
    n = side * side
    ids = torch.tensor([[5, 6, *[config.image_token_id] * n, 7, 8, 9, 10]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, side * patch, side * patch)}
    features = model.get_image_features(inputs["pixel_values"])
    given = {"input_ids": ids, "mm_encoder_outputs": {"image": features}}
    with tokenprune.wrap(model, policy) as handle, torch.no_grad(), Allocations() as memory:
        model(**given, logits_to_keep=1)
    assert handle.report().kept < handle.report().total == n
    assert memory.largest <= 16 * MIB < 4 * n * n

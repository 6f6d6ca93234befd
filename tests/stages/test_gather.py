"""Cutting everything that has a sequence dimension."""

import pytest
import torch

from tokenprune.errors import UnsupportedModelError
from tokenprune.stages.gather import Cut, shorten_inputs

KEEP = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]]).bool()  # ragged: 3 and 2 of 5


def test_order_is_kept_and_rows_are_right_aligned():
    cut = Cut.from_keep(KEEP, KEEP.sum(1))
    assert cut.index.tolist() == [[1, 3, 4], [0, 0, 4]]
    assert cut.valid.tolist() == [[True] * 3, [False, True, True]]
    assert (cut.removed, cut.ragged, cut.length) == (2, True, 5)
    assert not Cut.whole(torch.ones(2, 4).bool()).ragged


def test_take_along_any_dimension():
    cut = Cut.from_keep(KEEP, KEEP.sum(1))
    assert cut.take(torch.arange(5)[None], 1).tolist() == [[1, 3, 4], [0, 0, 4]]  # a batch of 1 is shared
    x = torch.randn(2, 5, 7)
    assert torch.equal(cut.take(x, 1)[0], x[0, [1, 3, 4]])
    axes = torch.randn(3, 2, 5)  # M-RoPE positions
    assert torch.equal(cut.take(axes, -1)[:, 1], axes[:, 1][:, [0, 0, 4]])


@pytest.mark.parametrize("past", [0, 2])
def test_two_dimensional_mask(past):
    mask = torch.ones(2, past + 5).long()
    mask[1, :past] = 0
    short = Cut.from_keep(KEEP, KEEP.sum(1)).shorten_mask(mask)
    assert short[:, past:].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert torch.equal(short[:, :past], mask[:, :past])


@pytest.mark.parametrize("past", [0, 2])
@pytest.mark.parametrize("additive", [False, True])
def test_four_dimensional_mask(past, additive):
    """Rows and columns of the segment go; the past and what each kept row may see stay."""
    seen = torch.rand(2, 1, 5, past + 5, generator=torch.Generator().manual_seed(0)) > 0.4
    low = torch.finfo(torch.float32).min
    mask = torch.where(seen, 0.0, low) if additive else seen
    short = Cut.from_keep(KEEP, KEEP.sum(1)).shorten_mask(mask)
    rows, columns = [1, 3, 4], [*range(past), *(past + i for i in (1, 3, 4))]
    assert torch.equal(short[0, 0], mask[0, 0][rows][:, columns])
    assert (short[1, 0, :, past] == (low if additive else False)).all()  # the padding slot is seen by nobody
    assert torch.equal(short[1, 0, 1:, past + 1 :], mask[1, 0][[0, 4]][:, [past, past + 4]])


def test_no_mask_stays_no_mask_only_where_nothing_can_be_misread():
    x, even = torch.randn(2, 5, 3), torch.tensor([[0, 1, 0, 1, 1], [1, 0, 1, 0, 1]]).bool()
    positions = torch.arange(5)[None]

    def mask(keep, cache):
        given = {"inputs_embeds": x, "attention_mask": None, "past_key_values": cache}
        cut = Cut.from_keep(keep, keep.sum(1))
        return shorten_inputs(given, cut, position_ids=positions, past=0, attention="sdpa")["attention_mask"]

    assert mask(even, object()) is None
    assert mask(even, None).tolist() == [[1, 1, 1]] * 2  # else gaps in positions read as packed sequences
    assert mask(KEEP, object()).tolist() == [[1, 1, 1], [0, 1, 1]]


def test_any_tensor_with_one_row_per_position_is_cut():
    given = {
        "inputs_embeds": torch.randn(2, 5, 3),
        "attention_mask": None,
        "per_layer": torch.randn(2, 5, 4, 6),
        "shared": torch.arange(5)[None],
        "other": torch.randn(2, 4),
        "flag": True,
        "flags": torch.ones(2, 5).bool(),
    }
    short = shorten_inputs(
        given, Cut.from_keep(KEEP, KEEP.sum(1)), position_ids=torch.arange(5)[None], past=0, attention="sdpa"
    )
    assert torch.equal(short["per_layer"][0], given["per_layer"][0, [1, 3, 4]])
    assert short["shared"].tolist() == [[1, 3, 4], [0, 0, 4]]
    assert short["other"] is given["other"]
    assert short["flag"] is True
    assert short["flags"].tolist() == [[True] * 3, [False, True, True]]  # off at padding


@pytest.mark.parametrize(("attention", "shape"), [("sdpa", (2, 1, 3, 5)), ("flash_attention_2", (2, 5))])
def test_masks_by_layer_type(attention, shape):
    """Every entry is cut by itself; one that was None because plain causal attention does becomes one with padding."""
    seen = torch.ones(2, 1, 5, 7).bool().tril(2)
    given = {
        "inputs_embeds": torch.randn(2, 5, 3),
        "attention_mask": {"full_attention": seen, "sliding_attention": None, "linear_attention": None},
        "past_key_values": object(),
    }
    cut = Cut.from_keep(KEEP, KEEP.sum(1))
    short = shorten_inputs(given, cut, position_ids=torch.arange(5)[None], past=2, attention=attention)
    masks = short["attention_mask"]
    assert torch.equal(masks["full_attention"], cut.shorten_mask(seen))
    assert masks["sliding_attention"].shape == shape
    assert masks["sliding_attention"].reshape(2, -1)[1, -3:].tolist() == [0, 1, 1]
    assert masks["linear_attention"].tolist() == [[1, 1, 1], [0, 1, 1]]
    even = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 1, 0, 1]]).bool()
    short = shorten_inputs(
        given, Cut.from_keep(even, even.sum(1)), position_ids=torch.arange(5)[None], past=2, attention=attention
    )
    assert short["attention_mask"]["sliding_attention"] is short["attention_mask"]["linear_attention"] is None


def test_restore_repeats_the_last_kept_row():
    cut = Cut.from_keep(KEEP, KEEP.sum(1))
    x = torch.tensor([[[1.0], [3.0], [4.0]], [[-1.0], [0.0], [4.0]]])  # rows of kept positions, -1 at padding
    assert cut.restore(x)[..., 0].tolist() == [[1.0, 1.0, 1.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0, 4.0]]


def test_masks_that_cannot_be_cut():
    cut = Cut.from_keep(KEEP, KEEP.sum(1))
    with pytest.raises(UnsupportedModelError, match="3 dimensions"):
        cut.shorten_mask(torch.ones(2, 5, 5))
    given = {"inputs_embeds": torch.randn(2, 5, 3), "attention_mask": object()}
    with pytest.raises(UnsupportedModelError, match="ready-made object"):
        shorten_inputs(given, cut, position_ids=torch.arange(5)[None], past=0, attention="sdpa")

"""Attention rows and column sums against whole maps."""

import pytest
import torch

from tokenprune.ops import attention, attention_rows, join_heads, received_attention


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, K, SCALE = randn(2, 4, 10, 8), randn(2, 2, 10, 8, seed=1), 0.3
WIDE = K.repeat_interleave(2, dim=1)


def maps(mask=None):
    """[B, H, L, L]"""
    scores = Q @ WIDE.mT * SCALE
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1).nan_to_num(0.0)


def test_rows():
    torch.testing.assert_close(attention_rows(Q[:, :, 2:5], K, SCALE), maps()[:, :, 2:5].mean(1))


def test_rows_under_a_mask_given_as_bool_or_added():
    mask = randn(2, 1, 3, 10, seed=2) > 0
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    whole = mask.expand(2, 1, 3, 10)
    scores = (Q[:, :, :3] @ WIDE.mT * SCALE).masked_fill(~whole, -torch.inf).softmax(-1)
    torch.testing.assert_close(attention_rows(Q[:, :, :3], K, SCALE, mask), scores.mean(1))
    torch.testing.assert_close(attention_rows(Q[:, :, :3], K, SCALE, added), scores.mean(1))


@pytest.mark.parametrize("elements", [1, 200, 10**6])
def test_columns_in_blocks_equal_the_whole_map(monkeypatch, elements):
    for name in ("BLOCK_ELEMENTS", "CACHED_ELEMENTS"):
        monkeypatch.setattr(attention, name, elements)
    torch.testing.assert_close(received_attention(Q, K, SCALE), maps().mean((1, 2)))


@pytest.mark.parametrize("elements", [90, 10**6])
def test_columns_count_the_queries_that_see_them(monkeypatch, elements):
    """Two images of 4 and 6 patches in one row: each is a map of its own."""
    for name in ("BLOCK_ELEMENTS", "CACHED_ELEMENTS"):
        monkeypatch.setattr(attention, name, elements)
    image = torch.tensor([0] * 4 + [1] * 6)
    mask = (image[:, None] == image)[None, None]
    found = received_attention(Q, K, SCALE, mask)
    for part in (slice(0, 4), slice(4, 10)):
        alone = (Q[:, :, part] @ WIDE[:, :, part].mT * SCALE).softmax(-1)
        torch.testing.assert_close(found[:, part], alone.mean((1, 2)))


def test_padding_gives_and_gets_nothing():
    """The last three positions are padding: no query sees them, and they see only others."""
    mask = (torch.arange(10) < 7).expand(1, 1, 10, 10)
    found = received_attention(Q, K, SCALE, mask)
    alone = (Q[:, :, :7] @ WIDE[:, :, :7].mT * SCALE).softmax(-1).mean((1, 2))
    torch.testing.assert_close(found[:, :7], alone)
    assert (found[:, 7:] == 0).all()
    one_row = received_attention(Q, K, SCALE, mask[:, :, :1])
    torch.testing.assert_close(one_row, found)


def test_joined_heads_are_one_wide_head():
    wide = join_heads(Q)
    assert wide.shape == (2, 1, 10, 32)
    assert torch.equal(wide[1, 0, 3], torch.cat([Q[1, head, 3] for head in range(4)]))


def test_half_precision_is_computed_in_float32():
    found = received_attention(Q.half(), K.half(), SCALE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, received_attention(Q.half().float(), K.half().float(), SCALE))

import torch

from tokenprune.ops import block_rank, pack, word_relevance, words


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_packing_puts_marked_rows_side_by_side():
    x = torch.arange(10.0).view(2, 5, 1)
    mask = torch.tensor([[False, True, False, True, True], [True, False, False, False, False]])
    rows, places, packed = pack(x, mask)
    assert rows[packed].flatten().tolist() == [1, 3, 4, 5]
    assert packed.tolist() == [[True] * 3, [True, False, False]]
    assert places[0].tolist() == [1, 3, 4]
    assert pack(x, torch.zeros_like(mask))[0].shape == (2, 0, 1)


def test_relevance_is_the_mean_of_softmaxes_over_words_whatever_the_padding(monkeypatch):
    visual, text = 3 * randn(2, 9, 4), 3 * randn(2, 5, 4, seed=1)
    seen, said = torch.arange(9) < torch.tensor([[9], [6]]), torch.arange(5) < torch.tensor([[3], [5]])
    for block in (words.BLOCK_ELEMENTS, 30):  # all at once, and three tokens at a time
        monkeypatch.setattr(words, "BLOCK_ELEMENTS", block)
        found = word_relevance(visual, seen, text, said)
        for g, (v, t) in enumerate(((9, 3), (6, 5))):
            expected = (visual[g, :v] @ text[g, :t].T).softmax(1).mean(0)
            torch.testing.assert_close(found[g, :t], expected)
            assert not found[g, t:].any()


def test_huge_half_precision_products_do_not_overflow():
    visual, text = 400 * torch.ones(1, 2, 8, dtype=torch.float16), torch.ones(1, 2, 8, dtype=torch.float16)
    text[0, 1] = 500
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert word_relevance(visual, mask, text, mask).tolist() == [[0.0, 1.0]]


def test_nothing_seen_or_said_is_relevant_to_nothing():
    none, some = torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    x = randn(1, 3, 4)
    assert not word_relevance(x, none, x, some).any()
    assert not word_relevance(x, some, x, none).any()


def test_the_rank_of_a_block_is_that_of_its_rows_and_columns_alone():
    blocks = torch.zeros(2, 6, 40)
    blocks[0, :5, 10:30] = randn(5, 2) @ randn(2, 20, seed=1)
    blocks[1] = randn(6, 40, seed=2)
    assert block_rank(blocks, torch.tensor([5, 6]), torch.tensor([20, 40])).tolist() == [2, 6]
    # a singular value between the tolerances of 6 x 8 and of 6 x 40 counts by the columns that are there
    values = torch.tensor([1.0, 2e-6])
    narrow = torch.zeros(1, 6, 40)
    narrow[0, :2, :2] = values.diag()
    assert block_rank(narrow, torch.tensor([6]), torch.tensor([8])).tolist() == [2]
    assert block_rank(narrow, torch.tensor([6]), torch.tensor([40])).tolist() == [1]

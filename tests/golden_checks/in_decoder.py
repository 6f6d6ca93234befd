"""Methods that prune between layers of the language model: FastV, PyramidDrop, SparseVLM, HiMAP, AdaptInfer."""

from dataclasses import replace

import numpy as np
import torch

from tests.default_layer_policies import given_attention, layer_tokens, spans
from tokenprune.layers import LayerTokens
from tokenprune.ops import density_peaks, pack, word_relevance
from tokenprune.policies import AdaptInfer, FastV, HiMAP, PyramidDrop, SparseVLM
from tokenprune.policies.sparsevlm import LISTS

from .common import floats, same
from .debiasing import himap_debiased

# of 576, by the mean that the paper gives
SCHEDULES = {128: (290, 72, 18), 64: (133, 27, 3), 48: (80, 24, 2), 32: (40, 12, 0)}


def scores_close(actual: torch.Tensor, expected) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-7)


def features_close(actual: torch.Tensor, expected) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-4)


def with_text(rows, *, own: bool = False):
    """Attention of T words behind one image, [H, T, V] over it; with `own` [H, T, V + T], the words themselves last."""
    heads, words, length = rows.shape
    image = length - words if own else length
    visual, text = spans(0, image, words)
    rows = torch.cat([floats(rows), torch.zeros(heads, words, image + words - length)], 2)[None]
    return given_attention(rows, text.nonzero()[None, :, 1], visual, text)


def scored(policy, attention, number: int = 0) -> LayerTokens:
    """What `select` would see of the one image of the prompt; hidden states are the places."""
    event = policy.events(32)[number]
    score = policy.score(attention, event)[attention.visual][None]
    hidden = torch.arange(score.shape[1], dtype=torch.float32)[None, :, None]
    return layer_tokens(hidden, score, event=event, compact=policy.positions == "compact")


def kept(policy, tokens: LayerTokens, before: int, total: int | None = None) -> np.ndarray:
    """Positions left, where `before` positions come before the image and the prompt has `total`; else of the image."""
    n = tokens.shape[1]
    k = policy.count(tokens.event, n)
    visual = policy.select(tokens, k).indices[0].numpy() + before
    if total is None:
        return visual
    return np.concatenate([np.arange(before), visual, np.arange(before + n, total)])


def check_fastv(z):
    start, n, text = (int(z[name]) for name in ("sys_length", "image_token_length", "text_length"))
    visual, written = spans(start, n, text)
    rows = floats(z["attn_last_row"])[None, :, None]
    total = rows.shape[-1]
    attention = given_attention(rows, torch.tensor([[total - 1]]), visual, written)
    policy = FastV(layer=int(z["agg_layer_K"]))
    tokens = scored(policy, attention)
    tolerance = {"rtol": 1e-3} if z["score_visual"].dtype == np.float16 else {"rtol": 1e-4, "atol": 1e-7}
    np.testing.assert_allclose(tokens.scores[0].numpy(), z["score_visual"].astype(np.float32), **tolerance)
    for rank in z["ranks"].tolist():
        same(torch.from_numpy(kept(replace(policy, keep=rank), tokens, start, total)), z[f"keep_inplace_rank{rank}"])
    for key in z:
        if key.startswith("keep_hf_"):  # the share that goes
            policy = FastV(layer=int(key[9]), keep=1.0 - float(key.rpartition("r")[2]))
            same(torch.from_numpy(kept(policy, tokens, start, total)), z[key])
        if key.startswith("keep_kvcache"):
            policy = FastV(layer=3, keep=0.5, rounding="floor")
            same(torch.from_numpy(kept(policy, tokens, start, total)), z[key])


def last_row(z, i: int) -> torch.Tensor:
    """[H, L], attention of the last token of prompt i in the small layer: RMS norm, projections, rotary embedding."""
    length, heads = int(z["seq_lens"][i]), int(z["num_heads"])
    x = floats(z["features"][i, :length])
    x = x * (x.pow(2).mean(-1, keepdim=True) + float(z["rms_eps"])).rsqrt() * floats(z["norm_weight"])
    q, k = ((x @ floats(z[f"{name}_weight"]).T).unflatten(1, (heads, -1)).transpose(0, 1) for name in "qk")
    half = q.shape[-1] // 2
    angle = torch.from_numpy(z["position_ids"][i, :length, None]) * float(z["rope_base"]) ** -(
        torch.arange(half) / half
    )

    def turned(x):
        a, b = x.split(half, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    return ((turned(q)[:, -1:] @ turned(k).mT) * q.shape[-1] ** -0.5).softmax(-1)[:, 0]


def check_pyramiddrop(z):
    """Every prompt of the batch, its positions renumbered behind the drop."""
    ratios, stage, found = z["ratio_list"].tolist(), int(z["stage"]), []
    policy = PyramidDrop(keeps=ratios[1:])
    for i, length in enumerate(z["seq_lens"].tolist()):
        start, v0 = int(z["image_start"][i]), int(z["image_tokens_at_entry_of_llm"][i])
        events = policy.events(32)
        current = policy.count(events[stage - 1], v0) if stage else v0
        assert length == int(z["prompt_len_without_image"][i]) + current
        visual, written = spans(start, current, length - start - current)
        attention = given_attention(last_row(z, i)[None, :, None], torch.tensor([[length - 1]]), visual, written)
        tokens = replace(scored(policy, attention, stage), total=v0)
        scores_close(tokens.scores[0], z[f"score_visual_{i}"])
        k = policy.count(events[stage], v0)
        left = policy.select(tokens, k).indices[0].numpy() + start
        found.append(np.concatenate([np.arange(start), left, np.arange(start + current, length)]))
        same(torch.from_numpy(found[-1]), z[f"kept_source_index_{i}"])
    assert policy.positions == "compact"
    assert [event.drop for event in PyramidDrop().events(32)] == [8, 16, 24]
    for i, row in enumerate(found):
        mask = np.arange(z["new_position_ids"].shape[1]) < len(row)
        same(torch.from_numpy(mask), z["new_attention_mask"][i])
        same(torch.arange(len(row)), z["new_position_ids"][i][mask])


def check_rater(z):
    x, start, n = floats(z["embeds"]), int(z["image_start"]), int(z["image_tokens"])
    visual, text = spans(start, n, x.shape[1] - start - n)
    raters = SparseVLM().raters(x, visual, text)
    same(raters[0].nonzero()[:, 0] - start - n, z["rater_index"])
    words, _, mask = pack(x, text)
    scores_close(word_relevance(*pack(x, visual)[::2], words, mask)[0], z["relevance"])


def check_topk(z):
    raters = z["rater_index"]
    attention = with_text(z["attn_text_rows_visual"][:, raters])
    for name, keeps in LISTS["1.5"].items():
        if f"keep_visual_index_{name}" in z:
            policy = SparseVLM(keeps=keeps, tau=0)
            tokens = scored(policy, attention)
            scores_close(tokens.scores[0], z["score_visual"])
            same(torch.from_numpy(kept(policy, tokens, 0)), z[f"keep_visual_index_{name}"])


def check_rank(z):
    attention, policy = with_text(z["attn_text_rows_visual"][:, z["rater_index"]]), SparseVLM(counts="rank", tau=0)
    tokens = scored(policy, attention)
    scores_close(tokens.scores[0].abs(), z["score_visual"])
    same(torch.from_numpy(kept(policy, tokens, 0)), z["keep_visual_index"])
    assert policy.count(tokens.event, 576) == 576  # the budget has no part in it


def check_recycle(z):
    """Means of the clusters in the order of their centres. The noise that was drawn decides nothing."""
    x, c = floats(z["tokens"]), int(z["cluster_num"])
    _, cluster = density_peaks(x, c)
    means = [x[0, cluster[0] == i].mean(0) for i in range(c)]
    features_close(torch.stack(means)[None], z["merged"])


def check_forward(z, strict: bool = True):
    """All stages, event by event, of a model whose layers change nothing."""
    x, start, v = floats(z["embeds"]), int(z["image_start"]), int(z["image_tokens"])
    t = int(z["text_tokens"])
    policy = SparseVLM(keeps=LISTS["1.5"][192], strict_paper=True) if strict else SparseVLM()
    for event, layer in zip(policy.events(32), z["prune_layers"].tolist(), strict=True):
        assert (event.score, event.drop) == (layer, layer + 1)
        visual, text = spans(start, v, t)
        if event.number == 0:
            raters = policy.raters(x, visual, text)[text]
        tokens = scored(policy, with_text(z[f"attn_text_rows_layer{layer}"][:, raters.numpy()]), event.number)
        tokens = replace(tokens, hidden=x[:, start : start + v], total=576)
        selection = policy.select(tokens, policy.count(event, 576))
        x = torch.cat([x[:, :start], selection.features, x[:, start + v :]], 1)
        v = selection.indices.shape[1]
        assert v == int(z[f"visual_tokens_after_layer{layer}"])
        features_close(x[0], z[f"hidden_after_layer{layer}"])
        same(torch.arange(x.shape[1]), z[f"position_ids_after_layer{layer}"])
    assert policy.positions == "compact"
    if strict:
        check_forward(z, strict=False)


def check_plus_forward(z):
    """As above; nothing is recycled, positions stay, and of 16 heads 14 count."""
    for strict in (True, False):
        policy = SparseVLM(version="plus", heads=14, keeps=LISTS["plus"][64], strict_paper=strict)
        assert (policy.positions, policy.exact) == ("original", True)
        x, start, v = floats(z["embeds"]), int(z["image_start"]), int(z["image_tokens"])
        t, place = int(z["text_tokens"]), torch.arange(x.shape[1])
        for event, layer in zip(policy.events(32), z["prune_layers"].tolist(), strict=True):
            visual, text = spans(start, v, t)
            if event.number == 0:
                raters = policy.raters(x, visual, text)[text]
            rows = floats(z[f"attn_text_rows_layer{layer}"])[None, :, raters]
            where = (start + v + raters.nonzero()[:, 0])[None]
            theta = 10000.0 ** -(torch.arange(16) / 16)  # of heads of size 32
            attention = given_attention(rows, where, visual, text, place=place[None], frequencies=theta)
            tokens = replace(scored(policy, attention, event.number), hidden=x[:, start : start + v], total=576)
            selection = policy.select(tokens, policy.count(event, 576))
            assert selection.features is None
            left = torch.cat([torch.arange(start), selection.indices[0] + start, torch.arange(start + v, len(place))])
            x, place, v = x[:, left], place[left], selection.indices.shape[1]
            assert v == int(z[f"visual_tokens_after_layer{layer}"])
            features_close(x[0], z[f"hidden_after_layer{layer}"])
            same(place, z[f"position_ids_after_layer{layer}"])


def check_himap(z):
    """Both stages; the first one also debiased."""
    start, n, text = (int(z[name]) for name in ("sys_length", "image_token_length", "text_length"))
    policy = HiMAP(keeps=(int(z["txt_rank"]), int(z["img_rank"])))
    assert [(event.score, event.drop, event.rows) for event in policy.events(32)] == [(1, 2, "text"), (7, 8, "visual")]
    tokens = scored(policy, with_text(z["attn_text_rows_visual"]))
    left = kept(policy, tokens, start, start + n + text)
    same(torch.from_numpy(left), z["keep_stage1"])
    himap_debiased(z)
    image = floats(z["attn_img"])[None]
    everywhere = torch.ones(1, image.shape[-1], dtype=torch.bool)
    rows = torch.arange(image.shape[-1])[None]
    tokens = scored(policy, given_attention(image, rows, everywhere, ~everywhere), number=1)
    chosen = policy.select(tokens, policy.count(tokens.event, n)).indices[0].numpy() + start
    same(torch.from_numpy(np.concatenate([left[:start], left[chosen], left[-text:]])), z["keep_stage2_positions"])
    assert policy.positions == "original"


def check_adaptinfer(z):
    rows = np.concatenate([z["attn_text_rows_visual"], z["attn_text_rows_text"]], 2)
    attention = with_text(rows, own=True)
    scores_close(scored(AdaptInfer(lb=0.5), attention).scores[0], z["score_visual_lb0p5"])
    for name, keeps in SCHEDULES.items():
        policy = AdaptInfer(keeps=keeps)
        tokens = scored(policy, attention)
        scores_close(tokens.scores[0], z["score_visual"])
        same(torch.from_numpy(kept(policy, tokens, 0)), z[f"keep_visual_index_{name}"])
    same(torch.from_numpy(kept(AdaptInfer(), scored(AdaptInfer(), attention), 0)), z["keep_visual_index_128"])
    assert [event.score for event in AdaptInfer().events(32)] == [1, 10, 20] == [e.drop - 1 for e in policy.events(32)]


FAMILIES = {
    "adaptinfer": check_adaptinfer,
    "fastv": check_fastv,
    "himap": check_himap,
    "pdrop": check_pyramiddrop,
    "sparsevlm_forward": check_forward,
    "sparsevlm_plus_forward": check_plus_forward,
    "sparsevlm_rank": check_rank,
    "sparsevlm_rater": check_rater,
    "sparsevlm_recycle": check_recycle,
    "sparsevlm_topk": check_topk,
}

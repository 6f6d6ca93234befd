"""Relevance to the instruction, on a tiny random CLIP and a tokenizer of ten words."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError, UnsupportedPolicyError
from tokenprune.ops import unit_norm
from tokenprune.policies import CDPruner, ClipRelevance, TextRelevance

WORDS = [f"w{i}" for i in range(10)]
BOS, EOS, CONTEXT, WIDTH = 10, 11, 6, 16


@pytest.fixture(scope="module")
def tokenizer():
    ids = {word: i for i, word in enumerate([*WORDS, "<bos>", "<eos>", "<unk>"])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(
        text_config={
            **layers,
            "hidden_size": 8,
            "vocab_size": 13,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
        vision_config={**layers, "hidden_size": WIDTH, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    return CLIPModel(config).eval()


def instruction(*lines, patches=1):
    encoder = torch.randn(len(lines), 5, patches, WIDTH, generator=torch.Generator().manual_seed(0))
    return visual_tokens(torch.zeros(len(lines), 5, 4), encoder=encoder, instruction=list(lines))


@torch.no_grad()
def expected(clip, tokens, rows):
    """Mean cosine of every patch with CLIP's own text features of the given id rows."""
    patches = unit_norm(clip.visual_projection(clip.vision_model.post_layernorm(tokens.encoder)))
    features = [clip.get_text_features(input_ids=torch.tensor([row])) for row in rows]
    text = unit_norm(torch.cat([getattr(feature, "pooler_output", feature) for feature in features]))
    return (patches @ text.T).mean(-1).mean(-1)


def test_clip_relevance_is_minus_the_cosine_in_the_joint_space(clip, tokenizer):
    tokens = instruction("w1 w2 w3")
    relevance = ClipRelevance(clip=clip, tokenizer=tokenizer)
    torch.testing.assert_close(relevance(tokens), -expected(clip, tokens, [[BOS, 1, 2, 3, EOS]]))
    flipped = ClipRelevance(clip=clip, tokenizer=tokenizer, sign=1)
    assert torch.equal(flipped(tokens), -relevance(tokens))


@pytest.mark.parametrize(("patches", "reduce"), [("mean", torch.mean), ("max", torch.amax)])
def test_a_merged_token_is_scored_by_its_patches(clip, tokenizer, patches, reduce):
    """The score of four patches is the mean, or the largest, of the scores each has alone."""
    tokens = instruction("w1 w2", patches=4)
    relevance = ClipRelevance(clip=clip, tokenizer=tokenizer, patches=patches)
    alone = [
        relevance(visual_tokens(tokens.features, encoder=tokens.encoder[:, :, i : i + 1], instruction=["w1 w2"]))
        for i in range(4)
    ]
    torch.testing.assert_close(relevance(tokens), reduce(torch.stack(alone), 0))


@torch.no_grad()
def test_the_dot_product_has_the_lengths_of_both(clip, tokenizer):
    tokens = instruction("w0 w1 w2 w3 w4", patches=2)
    patches = clip.visual_projection(clip.vision_model.post_layernorm(tokens.encoder))
    rows = [clip.get_text_features(input_ids=torch.tensor([row])) for row in ([BOS, 0, 1, 2, 3, EOS], [BOS, 4, EOS])]
    text = torch.cat([getattr(row, "pooler_output", row) for row in rows])
    relevance = ClipRelevance(clip=clip, tokenizer=tokenizer, similarity="dot")
    torch.testing.assert_close(relevance(tokens), -(patches @ text.T).mean((-2, -1)))
    with pytest.raises(InvalidArgumentError, match="similarity='l2' is neither"):
        ClipRelevance(clip=clip, tokenizer=tokenizer, similarity="l2")


def test_a_long_instruction_is_cut_into_segments_of_the_context_length(clip, tokenizer):
    tokens = instruction("w0 w1 w2 w3 w4 w5 w6 w7 w8")
    rows = [[BOS, 0, 1, 2, 3, EOS], [BOS, 4, 5, 6, 7, EOS], [BOS, 8, EOS]]
    relevance = ClipRelevance(clip=clip, tokenizer=tokenizer, sign=1)
    torch.testing.assert_close(relevance(tokens), expected(clip, tokens, rows))


def test_every_unit_has_its_own_instruction(clip, tokenizer):
    relevance = ClipRelevance(clip=clip, tokenizer=tokenizer)
    tokens = instruction("w1", "w2 w3", "w1")
    for i, line in enumerate(tokens.instruction):
        alone = visual_tokens(tokens.features[i : i + 1], encoder=tokens.encoder[i : i + 1], instruction=[line])
        torch.testing.assert_close(relevance(tokens)[i], relevance(alone)[0])


def test_an_empty_instruction_is_scored_too(clip, tokenizer):
    assert ClipRelevance(clip=clip, tokenizer=tokenizer)(instruction("")).isfinite().all()


def test_a_clip_of_another_width_is_refused(clip, tokenizer):
    tokens = visual_tokens(torch.zeros(1, 5, 4), encoder=torch.zeros(1, 5, 1, WIDTH + 1), instruction=["w1"])
    with pytest.raises(UnsupportedPolicyError, match=f"width {WIDTH} but this model's tower has width {WIDTH + 1}"):
        ClipRelevance(clip=clip, tokenizer=tokenizer)(tokens)


@pytest.mark.parametrize("sign", [0, 2, -1.5])
def test_another_sign_is_refused(clip, tokenizer, sign):
    with pytest.raises(InvalidArgumentError, match="sign="):
        ClipRelevance(clip=clip, tokenizer=tokenizer, sign=sign)


def test_cdpruner_needs_what_its_relevance_needs(clip, tokenizer):
    assert CDPruner().needs == TextRelevance.needs == {"features", "text"}
    assert CDPruner(relevance=lambda tokens: None).needs == {"features"}
    clip_relevance = ClipRelevance(clip=clip, tokenizer=tokenizer)
    assert CDPruner(relevance=clip_relevance).needs == {"features", "encoder", "instruction"}


def test_cdpruner_runs_with_clip_relevance(clip, tokenizer):
    tokens = instruction("w1 w2", "w3")
    policy = CDPruner(keep=2, relevance=ClipRelevance(clip=clip, tokenizer=tokenizer))
    features = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    order = policy.select(visual_tokens(features, encoder=tokens.encoder, instruction=tokens.instruction), 2).order
    assert torch.equal(order[:, 0], policy.relevance(tokens).argmax(-1))

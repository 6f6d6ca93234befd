"""Stage `skip`: tokens of a prompt skip blocks, and everything else is what it says."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, OPTConfig

from tests.families import BY_NAME, LLAVA
from tests.probes import same, snapshot
from tests.skipping import expected, padded, positions, text_model
from tokenprune import FTP, FastV, wrap
from tokenprune.errors import (
    AlreadyWrappedError,
    InvalidArgumentError,
    InvalidFeaturesError,
    StaleCacheError,
    UnsupportedModelError,
    UnsupportedPolicyError,
)
from tokenprune.fingerprint import fingerprint
from tokenprune.policies.skipping import skipped
from tokenprune.predictors import TokenRouter

SCHEDULE = (0.0, 0.5, 0.35, 0.2)
NOISE = {"atol": 1e-5, "rtol": 0.0}


def router(**more):
    torch.manual_seed(3)
    made = TokenRouter(**more)
    for one in made.parameters():
        torch.nn.init.normal_(one)
    return made.eval()


def ftp(kind="static", **more):
    return FTP(router=kind, schedule=SCHEDULE, predictor=router() if kind == "learned" else None, **more)


every_router = pytest.mark.parametrize("kind", ["learned", "static", "random"])
every_model = pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
every_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.mark.parametrize("policy", [FTP(router="static", sparsity=0), FTP(router="static", sparsity=0.01)])
def test_where_nothing_is_skipped_nothing_changes(policy):
    model, (ids, mask) = text_model(dtype=torch.float32), padded((19, 12))
    before = model(ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask, max_new_tokens=5)
    with wrap(model, policy) as handle:
        assert torch.equal(model(ids, attention_mask=mask).logits, before[0])
        assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=5), before[1])
        report = handle.report()
    assert (report.skipped, report.total) == (0, 4 * 31)
    assert report.cost()["prefill_flops_pruned"] == report.cost()["prefill_flops_dense"]


def test_after_remove_nothing_is_left():
    model, (ids, _) = text_model(), padded((9,))
    model(ids)  # transformers installs hooks of its own on first use
    before, logits = snapshot(model), model(ids).logits
    handle = wrap(model, ftp("learned"))
    assert not torch.equal(model(ids).logits, logits)
    copied = copy.deepcopy(model)
    handle.remove()
    handle.remove()
    assert same(before, snapshot(model))
    assert torch.equal(model(ids).logits, logits)
    assert torch.equal(copied(ids).logits, logits), "a copy of a wrapped model is a plain one"


@every_router
def test_counts_are_exact_and_the_ends_stay(kind):
    model, lengths = text_model(), (23, 14, 2, 1)
    ids, mask = padded(lengths)
    with wrap(model, ftp(kind)) as handle:
        model(ids, attention_mask=mask)
    report = handle.report()
    for i, share in enumerate(SCHEDULE):
        for row, n in enumerate(lengths):
            here = report.kept[i, row, -n:]
            assert not report.kept[i, row, :-n].any()
            assert int(here.sum()) == n - skipped(share, n) == report.computed[i][row]
            assert here[0]
            assert here[-1]
    assert [skipped(0.5, n) for n in (1, 2, 3, 5, 7, 100)] == [0, 0, 1, 2, 4, 50]
    assert skipped(1.0, 9) == 7
    assert f"skipped {report.skipped}/160 pairs of token and block" in str(report)
    assert report.skipped == 160 - int(report.kept.sum())


def test_the_static_router_skips_the_oldest_but_the_first():
    model, (ids, _) = text_model(), padded((10,))
    with wrap(model, ftp()) as handle:
        model(ids)
    assert [one.nonzero()[:, 0].tolist() for one in ~handle.report().kept[:, 0]] == [
        [],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4],
        [1, 2],
    ]


@every_router
@every_model
@every_attention
def test_a_padded_batch_and_its_decode_steps_are_what_they_should_be(name, attention, kind):
    """Against a dense model that computes everything, masks the keys of what skipped and passes it by."""
    dtype = torch.float64 if attention == "sdpa" else torch.float32  # eager takes the softmax in float32 anyway
    model, reference = (text_model(name, attention=attention, dtype=dtype) for _ in range(2))
    ids, mask = padded((17, 11, 6))
    with wrap(model, ftp(kind)) as handle, torch.no_grad():
        start = model(ids, attention_mask=mask, position_ids=positions(mask))
        kept, logits = handle.report().kept, [start.logits]
        cache, n = start.past_key_values, ids.shape[1]
        assert cache.get_seq_length() == n
        assert len({one.keys.shape[2] for one in cache.layers}) == 4
        for width in (1, 3, 1):  # steps, and several tokens at once
            ids = torch.cat([ids, torch.randint(5, 100, (3, width))], 1)
            mask = torch.cat([mask, torch.ones(3, width, dtype=torch.long)], 1)
            given = {"attention_mask": mask, "position_ids": positions(mask)[:, -width:]}
            logits.append(model(ids[:, -width:], past_key_values=cache, **given).logits)
    assert torch.equal(handle.report().kept, kept), "what is read later is never skipped"
    wanted = expected(reference, ids, mask, kept, more=5, position_ids=positions(mask))
    real = mask.bool()
    noise = NOISE if attention == "sdpa" else {"atol": 2e-4, "rtol": 0.0}
    torch.testing.assert_close(torch.cat(logits, 1)[real], wanted[real], **noise)
    dense = reference(ids, attention_mask=mask, position_ids=positions(mask)).logits
    assert (dense - wanted)[real].abs().max() > 0.1


@every_router
def test_a_prompt_alone_skips_what_it_skips_in_a_batch(kind):
    model, lengths = text_model(), (17, 11, 6)
    ids, mask = padded(lengths)
    with wrap(model, ftp(kind)) as handle, torch.no_grad():
        together = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
        kept = handle.report().kept
        for row, n in enumerate(lengths):
            alone = model(ids[row : row + 1, -n:]).logits
            assert torch.equal(handle.report().kept[:, 0], kept[:, row, -n:])
            torch.testing.assert_close(alone[0], together[row, -n:], **NOISE)
        right = padded(lengths, side="right")
        other = model(right[0], attention_mask=right[1]).logits
        for row, n in enumerate(lengths):
            assert torch.equal(handle.report().kept[:, row, :n], kept[:, row, -n:])
            torch.testing.assert_close(other[row, :n], together[row, -n:], **NOISE)


def test_a_skipped_token_leaves_a_block_bit_for_bit_as_it_came():
    model, (ids, mask) = text_model(dtype=torch.float32), padded((17, 11))
    with wrap(model, ftp("learned")) as handle:
        hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    kept = handle.report().kept
    assert len(hidden) == 5
    for i in range(3):  # behind the last one is the norm
        moved = (hidden[i + 1] != hidden[i]).any(-1)
        if SCHEDULE[i]:
            assert torch.equal(moved, kept[i])
    last = (hidden[4] != model.model.norm(hidden[3])).any(-1)
    assert torch.equal(last, kept[3])


def test_generate_greedily_by_beams_and_by_chance():
    model, reference = text_model(), text_model()
    ids, mask = padded((15, 9))
    asked = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    with wrap(model, ftp("learned")) as handle:
        for how in (
            {"do_sample": False},
            {"do_sample": True, "top_k": 20, "num_return_sequences": 3},
            {"do_sample": False, "num_beams": 3},
        ):
            torch.manual_seed(0)
            out = model.generate(ids, attention_mask=mask, **asked, **how)
            repeated = len(handle.report().kept[0])  # beams and returned sequences count as prompts of their own
            kept = handle.report().kept[:, :: repeated // 2].repeat_interleave(len(out.sequences) // 2, 1)
            times = len(out.sequences) // 2
            whole = torch.cat([mask.repeat_interleave(times, 0), torch.ones(2 * times, 6, dtype=torch.long)], 1)
            wanted = expected(reference, out.sequences, whole, kept, more=6, position_ids=positions(whole))[:, -7:-1]
            if "num_beams" in how:
                likely = wanted.log_softmax(-1).gather(2, out.sequences[:, -6:, None]).sum((1, 2)) / 6
                torch.testing.assert_close(likely, out.sequences_scores.double(), atol=1e-4, rtol=0)
            else:
                torch.testing.assert_close(torch.stack(out.logits, 1).double(), wanted, atol=1e-4, rtol=0)
    dense = reference.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    with wrap(model, ftp("learned")):
        assert not torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False), dense)


@pytest.mark.parametrize("family", [LLAVA, BY_NAME["qwen2_5_vl"], BY_NAME["qwen3_vl"]], ids=lambda one: one.name)
def test_the_language_model_of_a_vision_language_model(family):
    """Text and visual tokens alike, with positions of several axes and DeepStack features."""
    model, reference = family.model(), family.model()
    inputs = family.inputs((1, 2))
    depth = len(model.get_decoder().layers)
    policy = FTP(router="learned", predictor=router(), schedule=[0.4 * (i > 0) for i in range(depth)])
    with wrap(model, policy) as handle, torch.no_grad():
        start = model(**inputs)
    kept, mask, ids = handle.report().kept, inputs["attention_mask"], inputs["input_ids"]
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    wanted = expected(reference, ids, mask, kept, **rest)
    real = mask.bool()
    torch.testing.assert_close(start.logits[real], wanted[real], atol=family.tolerance * 5, rtol=0)
    assert (start.logits - reference(**inputs).logits)[real].abs().max() > 0.1
    with wrap(model, policy):
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, suppress_tokens=[family.token])
        again = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, suppress_tokens=[family.token], use_cache=True
        )
    assert torch.equal(out, again)


def test_switched_off_it_is_dense_and_goes_on_with_what_skipped():
    model, reference, (ids, _) = text_model(), text_model(), padded((12,))
    with wrap(model, ftp()) as handle, torch.no_grad():
        cache = model(ids).past_key_values
        kept = handle.report().kept
        handle.enabled = False
        assert torch.equal(model(ids).logits, reference(ids).logits)
        more = torch.tensor([[7, 8]])
        found = model(more, past_key_values=cache).logits
        whole = torch.cat([ids, more], 1)
        wanted = expected(reference, whole, torch.ones_like(whole), kept, more=2)[:, -2:]
        torch.testing.assert_close(found, wanted, **NOISE)
        handle.enabled = True
        assert not torch.equal(model(ids).logits, reference(ids).logits)
        dense = [reference(ids).past_key_values for _ in range(2)]
        found, wanted = (one(more, past_key_values=c).logits for one, c in zip((model, reference), dense, strict=True))
        assert torch.equal(found, wanted), "a dense cache is gone on with as it is"
    with pytest.raises(StaleCacheError, match="handle has been removed"):
        model(more, past_key_values=cache)


def test_what_cannot_be_exact_is_refused():
    model, (ids, mask) = text_model(), padded((12, 7))
    handle = wrap(model, ftp())
    with pytest.raises(UnsupportedPolicyError, match="labels are given.*look ahead"):
        model(ids, attention_mask=mask, labels=ids)
    with pytest.raises(UnsupportedModelError, match="static cache"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(UnsupportedModelError, match="several prompts are packed"):
        model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]]), use_cache=False)
    with pytest.raises(UnsupportedModelError, match=r"attention_mask that is none of \[batch, length\]"):
        model(ids, attention_mask=torch.zeros(2, 1, 12, 12, dtype=torch.float64))
    out = model(ids, attention_mask=mask)
    out.past_key_values.crop(-3)
    with pytest.raises(StaleCacheError, match="cropped to 9 tokens, and a prompt of 12"):
        model(ids[:, :1], past_key_values=out.past_key_values)
    with pytest.raises(AlreadyWrappedError):
        wrap(model, ftp())
    assert torch.isfinite(model(ids, attention_mask=mask).logits).all(), "a refused call leaves nothing behind"
    handle.remove()
    broken = router()
    torch.nn.init.constant_(broken.mlp[0].weight, torch.nan)
    with wrap(model, FTP(predictor=broken, schedule=SCHEDULE)), pytest.raises(InvalidFeaturesError, match="block 1"):
        model(ids, attention_mask=mask)


def test_what_cannot_be_wrapped_says_why():
    model = text_model()
    for match, make in (
        ("works alone", lambda: wrap(model, [ftp(), FastV(keep=3)])),
        ("keep=0.5", lambda: wrap(model, ftp(), keep=0.5)),
        ("per='crop'", lambda: wrap(model, ftp(), per="crop")),
        ("logits='full' says nothing", lambda: wrap(model, ftp(), logits="full")),
        ("3 shares, .* has 4 blocks", lambda: wrap(model, FTP(router="static", schedule=[0.1] * 3))),
        ("predictor=None", lambda: wrap(model, "ftp")),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            make()
    with wrap(model, ftp()) as handle, pytest.raises(InvalidArgumentError, match="instruction is about visual tokens"):
        handle.instruction = "?"
    with pytest.raises(UnsupportedModelError, match="sliding_attention"):
        wrap(text_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2), ftp())
    thin = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for config, match in (
        (GPTNeoXConfig(**thin, intermediate_size=8), "has blocks that are not given their cache"),
        (GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2), "no list of as many blocks"),
        (OPTConfig(**thin, ffn_dim=8, word_embed_proj_dim=8), "has no rotary embedding"),
    ):
        with pytest.raises(UnsupportedModelError, match=match):
            wrap(AutoModelForCausalLM.from_config(config), ftp())
    with pytest.raises(UnsupportedModelError, match="Linear is no language model"):
        wrap(torch.nn.Linear(2, 2), ftp())
    assert not any(one._forward_pre_hooks or one._forward_hooks for one in model.modules())


def test_a_router_of_another_model_is_refused():
    from tokenprune.errors import PredictorError

    model, other = text_model(dtype=torch.float32), text_model("qwen2", seed=5, dtype=torch.float32)
    policy = FTP(predictor=router(base=fingerprint(model)), schedule=SCHEDULE)
    wrap(model, policy).remove()
    with pytest.raises(PredictorError, match="trained for llama .* model is qwen2"):
        wrap(other, policy)

"""Tiny text models for tests of skipped blocks, and what such a model has to answer, worked out another way."""

from contextlib import contextmanager

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def text_model(kind="llama", *, attention="sdpa", seed=0, dtype=torch.float64, **changes):
    """Wide weights: a wrong mask, position or cache length moves logits by 0.1 and more."""
    config, cls = KINDS[kind]
    torch.manual_seed(seed)
    model = cls(config(**{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.set_attn_implementation(attention)
    return model.eval().to(dtype)


def padded(lengths, *, side="left", seed=1):
    """Ids and mask [B, L]."""
    torch.manual_seed(seed)
    most = max(lengths)
    ids, mask = torch.zeros(2, len(lengths), most, dtype=torch.long)
    for row, n in enumerate(lengths):
        here = slice(most - n, most) if side == "left" else slice(0, n)
        ids[row, here], mask[row, here] = torch.randint(5, 100, (n,)), 1
    return ids, mask


@contextmanager
def passed_by(model, kept, mask):
    """A dense model whose blocks compute everything, read keys of `kept` alone, and change nothing else.

    Args:
        kept: [blocks, B, L] bool over the whole sequence; mask: [B, L].
    """
    decoder, undo = model.get_decoder(), []
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None].bool()
    causal |= torch.eye(length, dtype=torch.bool)

    def before(module, args, kwargs, i):
        hidden = args[0]
        seen = causal & (kept[i][:, None] | torch.eye(length, dtype=torch.bool))
        lowest = torch.finfo(hidden.dtype).min
        added = torch.zeros(seen.shape, dtype=hidden.dtype).masked_fill(~seen, lowest)[:, None]
        return args, {**kwargs, "attention_mask": added}

    def behind(module, args, output, i):
        return torch.where(kept[i][..., None], output, args[0])

    for i, layer in enumerate(decoder.layers):
        undo.append(layer.register_forward_pre_hook(lambda m, a, k, i=i: before(m, a, k, i), with_kwargs=True).remove)
        undo.append(layer.register_forward_hook(lambda m, a, o, i=i: behind(m, a, o, i)).remove)
    try:
        yield model
    finally:
        for one in undo:
            one()


def expected(model, ids, mask, kept, more=0, **inputs):
    """Logits [B, L, V] of a dense model with the last `more` of L tokens computed in every block."""
    kept = torch.cat([kept, torch.ones(*kept.shape[:2], more, dtype=torch.bool)], 2)
    with passed_by(model, kept, mask), torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs).logits


def positions(mask):
    return (mask.cumsum(1) - 1).clamp_min(0)

"""Tiny text encoders of random weights."""

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

FAMILIES = ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
SIZES = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "vocab_size": 50}
OWN = {
    "albert": {"embedding_size": 12, "intermediate_size": 40},
    "electra": {"embedding_size": 12, "intermediate_size": 40},
    "distilbert": {"hidden_dim": 40},
}


def build(family="bert", *, head=False, **more):
    """In float64 and eval mode; pad_token_id is 1. Wide weights: a wrong mask or place moves rows by 0.1 and more."""
    given = {**SIZES, **OWN.get(family, {"intermediate_size": 40}), "max_position_embeddings": 60, "pad_token_id": 1}
    config = AutoConfig.for_model(family, **{**given, "num_labels": 3, **more})
    torch.manual_seed(0)
    model = (AutoModelForSequenceClassification if head else AutoModel).from_config(config)
    with torch.no_grad():
        for one in model.parameters():
            if one.ndim > 1:
                one.normal_(std=0.3)
    return model.eval().double()


def texts(lengths, *, side="right", width=None):
    """Inputs of random tokens, [CLS] 2 and [SEP] 3 at their ends, padded."""
    generator = torch.Generator().manual_seed(7)
    width = width or max(lengths)
    ids, mask = torch.ones(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, seen, n in zip(ids, mask, lengths, strict=True):
        place = slice(0, n) if side == "right" else slice(width - n, width)
        row[place] = torch.tensor([2, *torch.randint(5, 50, (n - 2,), generator=generator).tolist(), 3])
        seen[place] = 1
    return {"input_ids": ids, "attention_mask": mask}


class Tokenizer:
    """Letters are tokens."""

    def __call__(self, given, *, padding=False, truncation=False, max_length=60, return_tensors=None):
        several = [given] if isinstance(given, str) else list(given)
        words = [[5 + ord(c) % 45 for c in text if c != " "][: max_length - 2] for text in several]
        rows = [[2, *row, 3] for row in words]
        if return_tensors is None:
            return {"input_ids": rows[0] if isinstance(given, str) else rows}
        width = max(map(len, rows))
        batch = {
            "input_ids": torch.tensor([row + [1] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        }
        return Batch(batch)


class Batch(dict):
    def to(self, device):
        return Batch({name: value.to(device) for name, value in self.items()})

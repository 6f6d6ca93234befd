"""Where transformers has to be what the hooks take it for. A failure here says which family moved, and what moved."""

import pytest
import torch

from tests.families import BY_NAME, REFUSED
from tokenprune.adapters import lookup, supported
from tokenprune.stages.features import ENCODERS, rows_of
from tokenprune.stages.parts import find_parts

FAMILIES = {family.model_type: family for name, family in BY_NAME.items() if name == family.model_type}
FAMILIES = {name: family for name, family in FAMILIES.items() if name not in REFUSED}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_seams(model_type):
    family = FAMILIES[model_type]
    model, inputs = family.model(), family.inputs((2, 1))
    parts = find_parts(model, lookup, supported())
    if parts.adapter.merger is not None:
        assert parts.module(parts.adapter.merger), f"{model_type}: {parts.adapter.merger} is gone"

    encodings, calls = [], []
    for name in ENCODERS:
        if hasattr(parts.outer, name):
            method = getattr(parts.outer, name)

            def watched(*args, method=method, **kwargs):
                encodings.append(method(*args, **kwargs))
                return encodings[-1]

            setattr(parts.outer, name, watched)
    parts.decoder.register_forward_pre_hook(lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)

    assert encodings, f"{model_type}: its forward encodes images by another method than {' or '.join(ENCODERS)}"
    assert len(calls) == 1, f"{model_type}: the decoder is called {len(calls)} times"
    args, given = calls[0]
    assert not args, f"{model_type}: the decoder gets positional arguments"
    tokens = {parts.placeholder("image"), parts.placeholder("video")} - {None}
    placeholders = torch.isin(inputs["input_ids"], torch.tensor(sorted(tokens))).sum()
    assert placeholders > 0, f"{model_type}: its placeholder is no longer the id in its config"
    shape = given["inputs_embeds"].shape[:2]
    assert shape == inputs["input_ids"].shape, f"{model_type}: the decoder gets another sequence than the prompt"
    rows = sum(rows_of(encodings[-1]))
    assert rows >= int(placeholders), f"{model_type}: {rows} rows for {placeholders} placeholders"

"""`python -m tests.families.check MODULE [NAME ...]`: do the dense tiny models run? For whoever adds a builder."""

from __future__ import annotations

import importlib
import sys
import traceback

import torch

from tests.families.base import Family


@torch.no_grad()
def report(family: Family, images: tuple[int, ...]) -> str:
    """One line: generate and forward must agree, and the answer must depend on the pixels."""
    model, inputs = family.model(), family.inputs(images)
    out = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    ).logits[0]
    plain = model(**inputs).logits[:, -1]
    negative = {
        name: -value for name, value in inputs.items() if name.startswith("pixel_values") and value.is_floating_point()
    }
    other = model(**{**inputs, **negative}).logits[:, -1]
    return (
        f"ok   {family.name:28} {images!s:10} length {inputs['input_ids'].shape[1]:4}"
        f" generate-forward {(out - plain).abs().max():.1e}"
        f" logit std {plain.std():.2f}, moved by the pixels {(plain - other).abs().max():.2f}"
    )


if __name__ == "__main__":
    module, names = importlib.import_module(f"tests.families.{sys.argv[1]}"), sys.argv[2:]
    for family in module.FAMILIES:
        for images in ((1,), (2, 1), (1, 0, 2)) if not names or family.name in names else ():
            try:
                print(report(family, images))
            except Exception as error:
                print(f"FAIL {family.name}: {type(error).__name__}: {str(error)[:300]}")
                if names:
                    traceback.print_exc()

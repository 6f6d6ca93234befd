"""Rows of a layer's attention, against transformers' eager attention over all rows."""

import numpy as np
import torch

from tokenprune.stages.rows import LayerAttention

from .common import floats


def check_rows(z):
    position, keys = torch.from_numpy(z["query_pos"])[None], floats(z["k"])[None]
    given = floats(z["q_rows"])[None]
    query = torch.full((1, given.shape[1], keys.shape[2], given.shape[-1]), torch.nan)  # no other row may be read
    query[:, :, position[0]] = given
    image = slice(int(z["image_start"]), int(z["image_start"]) + int(z["image_tokens"]))
    here = torch.ones(1, keys.shape[2], dtype=torch.bool)
    attention = LayerAttention(
        rows=position,
        row_mask=torch.ones_like(position, dtype=torch.bool),
        visual=here,
        text=here,
        place=torch.arange(keys.shape[2])[None],
        heads=given.shape[1],
        query=query,
        keys=keys,
        mask=None,
        options={"scaling": float(z["scale"])},
        first=0,
    )
    found = torch.cat([block for _, block in attention.blocks()], 2)[0][..., image]
    np.testing.assert_allclose(found.numpy(), z["prob_rows_visual"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(attention.total()[0, image], z["prob_rows_visual"].sum((0, 1)), rtol=1e-4, atol=1e-6)


FAMILIES = {"exact_rows": check_rows}

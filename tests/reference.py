"""What pruning means, written without hooks, caches, padding or batches: the reference of contract 2.

The prompt of one sample is embedded in full and given its full positions; rows are dropped by hand; every step runs the
decoder anew over all that is left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.families import IMAGE, VIDEO


@torch.no_grad()
def full_prompt(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Decoder input [B, L, D] and positions [B, L] or [3, B, L] of the unpruned batch."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    x = model.get_input_embeddings()(ids)
    arguments = {
        "image": ("pixel_values", "image_grid_thw", IMAGE),
        "video": ("pixel_values_videos", "video_grid_thw", VIDEO),
    }
    for modality, (pixels, grid, token) in arguments.items():
        if pixels in inputs:
            given = {pixels: inputs[pixels]} | ({grid: inputs[grid]} if grid in inputs else {})
            rows = getattr(model.model, f"get_{modality}_features")(**given, return_dict=True).pooler_output
            rows = torch.cat([row.reshape(-1, row.shape[-1]) for row in rows])
            x = x.masked_scatter((ids == token)[..., None], rows.to(x.dtype))
    if hasattr(model.model, "get_rope_index"):
        names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        given = {name: inputs[name] for name in names if name in inputs}
        return x, model.model.get_rope_index(ids, attention_mask=mask, **given)[0]
    return x, (mask.cumsum(1) - 1).clamp_min(0)


@torch.no_grad()
def logits(model: Any, x: Tensor, positions: Tensor) -> Tensor:
    """[L', V] of one sample; x [L', D], positions [L'] or [3, L']."""
    positions = positions[:, None] if positions.ndim == 2 else positions[None]
    out = model.model.language_model(
        inputs_embeds=x[None], position_ids=positions, attention_mask=torch.ones(1, len(x)).long(), use_cache=False
    )
    return model.lm_head(out.last_hidden_state)[0]


@torch.no_grad()
def generate(
    model: Any,
    inputs: dict[str, Tensor],
    keep: Tensor,
    *,
    steps: int,
    forced: Tensor | None = None,
    rows: Tensor | None = None,
    compact: bool = False,
) -> Tensor:
    """[B, steps, V] logits of every step, greedy or along `forced` [B, steps] tokens.

    Args:
        keep: [B, L] bool, what is left of the prompt (padding is dropped in any case).
        rows: [B, L, D] decoder input to use instead of the embedded prompt (merged rows).
        compact: number the kept tokens 0, 1, 2 ... instead of keeping their positions.
    """
    x, positions = full_prompt(model, inputs)
    x = x if rows is None else rows
    steps_of = []
    for b, (row, valid) in enumerate(zip(keep, inputs["attention_mask"].bool(), strict=True)):
        at = (row & valid).nonzero()[:, 0]
        seq, where = x[b, at], positions[..., b, :][..., at]
        after = positions[..., b, :].max() + 1
        if compact:
            where = torch.arange(len(at))
            after = torch.tensor(len(at))
        out = []
        for step in range(steps):
            out.append(logits(model, seq, where)[-1])
            token = out[-1].argmax() if forced is None else forced[b, step]
            seq = torch.cat([seq, model.get_input_embeddings()(token[None])])
            new = (after + step).expand(*where.shape[:-1], 1)
            where = torch.cat([where, new], -1)
        steps_of.append(torch.stack(out))
    return torch.stack(steps_of)


def keep_mask(inputs: dict[str, Tensor], report: Any) -> Tensor:
    """[B, L] bool of what a report says was kept, by counting placeholders of each sample in order (per="image")."""
    visual = (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)
    keep = ~visual
    for b in range(len(keep)):
        place, start = visual[b].nonzero()[:, 0], 0
        for unit in (unit for unit in report.units if unit.sample == b):
            keep[b, place[start : start + unit.total][unit.indices]] = True
            start += unit.total
        assert start == len(place), "the report does not cover every visual token"
    return keep

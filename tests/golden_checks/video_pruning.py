"""EVS, VidCom2, DyCoke and FastVID."""

import json
from functools import partial

import numpy as np
import torch

from tokenprune.adapters import Features, Layout
from tokenprune.ops import media_mrope, mrope_delta, retained_count, sequence_positions
from tokenprune.policies import EVS, DyCoke, FastVID, VidCom2
from tokenprune.policies.fastvid_counts import segmented
from tokenprune.stages.separators import drop_empty
from tokenprune.stages.visual import Item
from tokenprune.tokens import VisualTokens

from .common import floats, same

EXACT = {"rtol": 0, "atol": 1e-4}


def parameters(z) -> dict:
    return json.loads(z["meta_json"].item())["params"]


def video(z, rows=None) -> VisualTokens:
    """The frames of the file as one unit; squares where no rows are given."""
    frames = floats(z["frames"])
    t, n, _ = frames.shape
    rows = rows or round(n**0.5)
    return VisualTokens(features=frames.flatten(0, 1)[None], grid=(t, rows, n // rows))


def check_evs(z):
    p = parameters(z)
    h, w = p["merged_h"], p["merged_w"]
    tokens = video(z, h)
    policy = EVS(keep=1.0 - p["q"], strict_paper=True)
    kept = policy.select(tokens, policy.budget.count(tokens.shape[1])).indices[0]
    same(kept, z["mask"].nonzero()[0])
    assert len(kept) == retained_count(h * w, p["T"], p["q"]) == int(z["retained"])
    same(EVS().select(tokens, len(kept)).indices[0], z["mask"].nonzero()[0])
    speed = {"tokens_per_second": p["tokens_per_second"], "second_per_grid": p["video_second_per_grid"]}
    media = media_mrope(p["T"], h, w, **speed)
    same(media, z["media_mrope"])
    start = p["text_before"] + 1
    positions = sequence_positions(start + len(kept) + 1 + p["text_after"], [start], [media[kept]])
    same(positions, z["sequence_positions"])
    assert mrope_delta(positions) == int(z["mrope_delta"])


def check_evs_counts(z):
    for (n, t, q), count in zip(z["rows"], z["count"], strict=True):
        assert retained_count(int(n), int(t), float(q)) == count


def check_vidcom2(z):
    p = parameters(z)
    tokens = video(z)
    policy = VidCom2(keep=p["retention"], strict_paper=True)
    likeness = policy.likeness(tokens.features.unflatten(1, z["frames"].shape[:2]))
    for actual, name in zip(likeness, ("video_score", "frame_score"), strict=True):
        np.testing.assert_allclose(actual[0].numpy(), z[name], **EXACT)
    scales = (p["retention"] * policy.shares(likeness[0])[0]).clamp(max=1.0)
    np.testing.assert_allclose(scales.numpy(), z["scales"], **EXACT)
    kept = policy.select(tokens, policy.budget.count(tokens.shape[1])).indices[0]
    same(torch.bincount(kept // z["frames"].shape[1], minlength=p["T"]), z["kept_per_frame"])
    expected = z["keep"]
    if p["model"] == "llava_vid":  # grids with a column of newlines, all of which were kept, behind each frame's tokens
        side = p["grid"]
        expected = expected[expected % (side + 1) < side]
        expected = expected // (side + 1) * side + expected % (side + 1)
    same(kept, np.sort(expected))


def check_dycoke(z):
    p, tokens = parameters(z), video(z)
    policy = DyCoke(merging_ratio=p["merging_ratio"], strict_paper=True)
    selection = policy.select(tokens, tokens.shape[1] // 2)
    same(selection.order[0], z["keep"])
    np.testing.assert_array_equal(tokens.features[0, selection.order[0]].numpy(), z["tokens"])


def check_fastvid(z, form):
    """Kept positions and tokens of the whole prompt, whose video begins behind `pre`."""
    p = parameters(z)
    names = {"c": "DySeg_c", "tau": "DySeg_tau", "d": "STPrune_d", "p": "DTM_p", "beta": "DTM_beta"}
    fields = {field: p[name] for field, name in names.items()} | {"form": form, "ignore": p.get("DySeg_ignore")}
    if "frame_global" in z:
        fields["frames"] = lambda _: floats(z["frame_global"])[None]
    policy = FastVID(
        keep=p["retention_ratio"], attention=lambda _: floats(z["attn"]).flatten()[None], strict_paper=True, **fields
    )
    tokens = video(z, p.get("grid_h"))
    counts = segmented(policy.similarity(tokens)[0], z["frames"].shape[1], policy.c, policy.tau, None)
    same(torch.tensor([len(segment) for segment in counts.segments]), z["segment_sizes"])
    noise = floats(z["noise"])[None] if "noise" in z else None
    selection = policy.select(tokens, policy.budget.count(tokens.shape[1]), noise)
    prompt = [floats(z["pre"]), selection.features[0], floats(z["post"])]
    places = selection.indices[0]
    if "newline" in z:
        prompt[1], places = with_newlines(z, prompt[1], places)
    behind = len(z["pre"]) + tokens.shape[1] + (p["T"] * p["grid"] if "newline" in z else 0)
    kept = [torch.arange(len(z["pre"])), len(z["pre"]) + places, behind + torch.arange(len(z["post"]))]
    same(torch.cat(kept), z["keep"])
    np.testing.assert_allclose(torch.cat(prompt).numpy(), z["tokens"], **EXACT)


def with_newlines(z, rows, places):
    """The same where every line of the grid ends with a newline, and keeps it while it has tokens."""
    t, n, width = z["frames"].shape
    side = round(n**0.5)
    newline = torch.arange(side + 1).repeat(t * side) == side
    end = torch.arange(side, len(newline), side + 1).repeat_interleave(side + 1).masked_fill(newline, -1)
    layout = Layout(crop=torch.where(newline, -1, 0), grids=((t, side, side),), line_end=end)
    item = Item(0, "video", torch.arange(len(newline)), layout, Features(modality="video"), 0)
    keep = newline.clone()
    keep[(~newline).nonzero()[:, 0][places]] = True
    whole = torch.zeros(len(newline), width)
    whole[(~newline).nonzero()[:, 0][places]], whole[newline] = rows, floats(z["newline"])
    keep = keep[None]
    drop_empty([item], keep)
    kept = keep[0].nonzero()[:, 0]
    return whole[kept], kept


FAMILIES = {
    "dycoke_ttm": check_dycoke,
    "evs": check_evs,
    "evs_counts": check_evs_counts,
    "fastvid_llavavideo": partial(check_fastvid, form="sequential"),
    "fastvid_ov": partial(check_fastvid, form="parallel"),
    "fastvid_qwen25vl": partial(check_fastvid, form="sequential"),
    "vidcom2": check_vidcom2,
}

"""What reduces videos inside the language model: FrameFusion, DyCoke's choice at decode steps."""

import json

import numpy as np
import torch

from tests.default_layer_policies import layer_tokens
from tokenprune.layers import Event
from tokenprune.ops import reselected
from tokenprune.policies import FrameFusion

from .common import floats, same
from .in_decoder import features_close

DEPTH = 28  # that the released code counts with


def about(z) -> dict:
    return json.loads(str(z["meta_json"]))["params"]


def check_framefusion(z):
    """Call after call, hidden states drifting between them; kept positions and flags of the phases."""
    params, frames = about(z), floats(z["frames"])
    steps, side, first, behind = params["T"], params["grid"], params["pre_tokens"], params["post_tokens"]
    policy = FrameFusion(
        strict_paper=True,
        target_cost=params["cost"],
        similarity_lower_bound=params["similarity_lower_bound"],
        ratio_lower_bound=params["ratio_lower_bound"],
    )
    hidden, place, entered = frames.flatten(0, 1), torch.arange(steps * side**2), ()
    for call in range(params["calls"]):
        length = first + len(place) + behind
        scores = floats(z["attn"][call])[:, 0, first : length - behind].mean(0)
        tokens = layer_tokens(
            hidden[None],
            scores[None],
            place=place[None],
            total=steps * side**2,
            grid=(steps, side, side),
            entered=[entered],
            depth=DEPTH,
            event=Event(drop=call, number=call),
        )
        selection = policy.select(tokens, len(place))
        chosen = selection.indices[0]
        hidden = hidden[chosen] if selection.features is None else selection.features[0]
        place, entered = place[chosen], (*entered, len(chosen))
        same(place + first, z[f"kept_{call}"][first:-behind])
        features_close(hidden, z[f"hidden_{call}"][first:-behind])
        hidden = hidden + floats(z["drift"][call])[place + first]
    if bool(z[f"flags_{call}"][1]):  # finished: nothing goes any more, whatever is similar
        layer_after = Event(drop=call + 1, number=call + 1)
        tokens = layer_tokens(
            torch.ones_like(hidden)[None],
            place=place[None],
            total=steps * side**2,
            grid=(steps, side, side),
            entered=[entered],
            depth=DEPTH,
            event=layer_after,
        )
        assert policy.select(tokens, len(place)).indices.shape[1] == len(place)


def check_framefusion_budget(z):
    """The share that may go, behind layers that read what sparsities so far left of 1000 tokens."""
    for (sparsities, cost), expected in zip(about(z)["cases"], z["ratio"], strict=True):
        policy = FrameFusion(strict_paper=True, target_cost=cost)
        counts = tuple(1000 * np.cumprod([1 - s for s in sparsities]))
        tokens = layer_tokens(torch.zeros(1, 1, 1), total=1000, depth=DEPTH)
        np.testing.assert_allclose(policy.most(counts, tokens), expected, rtol=1e-9)


def check_dycoke_decode(z):
    params, previous = about(z), None
    first, count = params["video_start"], params["video_tokens"]
    for rows, keep, length in zip(z["attention_last_query"], z["keep"], z["seq_lens"], strict=True):
        attention = floats(rows).mean(0)[None, first : first + count]
        chosen = reselected(attention, previous, 1 - params["p"], params["sim_threshold"])[0]
        previous = attention
        if (keep < 0).all():  # all are read
            assert chosen.all()
            continue
        text = [i for i in range(length) if not first <= i < first + count]
        expected = sorted([*text, *(chosen.nonzero()[:, 0] + first).tolist()])
        np.testing.assert_array_equal(expected, keep[keep >= 0])


FAMILIES = {
    "framefusion": lambda z: check_framefusion_budget(z) if "ratio" in z.files else check_framefusion(z),
    "dycoke_dp": check_dycoke_decode,
}

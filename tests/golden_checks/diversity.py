"""Diversity, weighted or not: CDPruner, OpenVINO's, DivPrune, ZOO-Prune."""

from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

from tokenprune.budget import Budget
from tokenprune.ops import interleave_crops, mean_cosine
from tokenprune.policies import CDPruner, CDPrunerOpenVINO, DivPrune, ZooPrune
from tokenprune.policies.sensitivity import Sensitivity
from tokenprune.projection import Mlp, Projection
from tokenprune.tokens import VisualTokens

from .common import floats, same


def check_divprune(z):
    keep, tokens = int(z["keep"]), floats(z["visual_tokens"])[None]
    assert Budget(float(z["ratio"])).count(tokens.shape[1]) == keep
    selection = DivPrune(keep=keep).select(VisualTokens(features=tokens), keep)
    same(selection.indices[0], z["keep_indices_sorted"])
    same(selection.order[0], z["greedy_order"])


def check_cdpruner(z):
    """The published minus sign, relevance scaled over all crops together, theta where a file has it."""
    keep, text = int(z["keep"]), floats(z["text_embeds"])
    policy = CDPruner(
        keep=keep,
        theta=float(z["theta"]) if "theta" in z else None,
        relevance=lambda tokens: -mean_cosine(tokens.encoder[:, :, 0], text),
    )
    features = floats(z["visual_features"])
    crops_of_one_image = torch.zeros(len(features), dtype=torch.long)
    selection = policy.select(
        VisualTokens(features=features, encoder=floats(z["image_embeds"])[:, :, None], image=crops_of_one_image), keep
    )
    same(selection.indices, z["keep_indices_sorted"])
    same(selection.order, z["greedy_order" if "greedy_order" in z else "greedy_order_float64"])
    if "keep_mask" in z:
        same(selection.source_map(features.shape[1]) >= 0, z["keep_mask"])
    if "relevance" in z:
        np.testing.assert_allclose(selection.scores.numpy(), z["relevance"], rtol=0, atol=5e-5)


def check_assembly(z):
    crop, patch = interleave_crops(
        torch.from_numpy(z["keep_mask"]), (int(z["num_crops_high"]), int(z["num_crops_wide"]))
    )
    same(crop, z["final_crop"])
    same(patch, z["final_patch"])


def check_openvino(z):
    keep, features = int(z["keep"]), floats(z["visual_features"])
    assert Budget(1 - float(z["pruning_ratio_percent"]) / 100, rounding="half_up").count(features.shape[1]) == keep
    text = floats(z["text_features"])[None] * (-1 if z["use_negative_relevance"] else 1)
    tokens = VisualTokens(features=features, text=text, text_mask=torch.ones(1, text.shape[1], dtype=torch.bool))
    weight = float(z["relevance_weight"])
    full, split = (
        CDPrunerOpenVINO(keep=keep, relevance_weight=weight, split=split).select(tokens, keep)
        for split in (False, True)
    )
    same(full.indices, z["selected_full"])
    same(split.indices, z["selected_split"])
    np.testing.assert_allclose(full.scores.numpy(), z["relevance"], rtol=0, atol=5e-5)


def projected(apply) -> Projection:
    return Projection(apply=apply, exact=apply, mlp=lambda: apply)


def check_zoo(z):
    """From vision features to the selection, with the file's directions in place of the seeded ones."""
    keep, mlp = int(z["keep"]), Mlp(**{name.lower(): floats(z[name]) for name in ("W1", "b1", "W2", "b2")}, act=F.gelu)
    tokens = VisualTokens(
        features=floats(z["projected"])[None], encoder=floats(z["x"])[None, :, None], projection=projected(mlp)
    )
    np.testing.assert_allclose(mlp(tokens.encoder)[0], z["projected"], rtol=1e-4, atol=1e-5)
    directions = floats(z["directions"])
    policy = ZooPrune(estimator="zeroth_order", m=len(directions), h=float(z["h"]), keep=keep)
    with mock.patch.object(Sensitivity, "directions", return_value=directions):
        np.testing.assert_allclose(policy.quality()(tokens)[0], z["sensitivity_float64"], rtol=2e-4)
        selection = policy.select(tokens, keep)
    same(selection.order[0], z["sads_order"])
    same(selection.indices[0], z["keep_indices_sorted"])


def check_zoo_next(z):
    """Every label is a unit: base crop and tiles, newline tokens are in none.

    The file holds sensitivities but no vision features: those of x^2 / 2 are |x| exactly, whatever the direction.
    """
    label, keep = z["frame_label"], int(z["k_frame"])
    assert (np.flatnonzero(label == -9999) == z["newline_positions"]).all()
    places = torch.stack([torch.from_numpy(np.flatnonzero(label == one)) for one in range(int(label.max()) + 1)])
    tokens = VisualTokens(
        features=floats(z["projected"])[places],
        encoder=floats(z["sensitivity"])[places][..., None, None],
        projection=projected(lambda x: x[..., 0, :].square() / 2),
    )
    selection = ZooPrune(estimator="zeroth_order", h=1.0, keep=keep).select(tokens, keep)
    same(places.gather(1, selection.order).flatten(), z["selected_order"])


FAMILIES = {
    "cdpruner": check_cdpruner,
    "cdpruner_anyres_assembly": check_assembly,
    "divprune": check_divprune,
    "openvino": check_openvino,
    "zoo": check_zoo,
    "zoo_next": check_zoo_next,
}

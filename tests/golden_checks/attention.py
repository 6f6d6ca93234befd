"""Methods that read attention inside the tower: VisionZip, VisPruner, FasterVLM, PruMerge, HoloV, HiPrune."""

import numpy as np
import torch

from tokenprune.ops import interleave_dominant
from tokenprune.policies import FasterVLM, HiPrune, HoloV, PruMerge, PruMergePlus, VisionZip, VisPruner
from tokenprune.policies.prumerge import ATTENTION, KEYS
from tokenprune.policies.visionzip import CLASS_TOKEN
from tokenprune.projection import Projection
from tokenprune.tokens import VisualTokens

from .common import floats, same

PLAIN = Projection(apply=lambda x: x.flatten(-2), exact=lambda x: x.flatten(-2), mlp=lambda: None)


def tower_tokens(patches, tower) -> VisualTokens:
    """Tokens whose projector is the identity."""
    return VisualTokens(features=patches, encoder=patches[:, :, None], tower=tower, projection=PLAIN)


def close(actual: torch.Tensor, expected) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-5)


def check_visionzip(z):
    """As released with `strict_paper`; without, the same tokens but the class token, each at its own place."""
    contextual, k = int(z["contextual_param"]), int(z["dominant_param"]) + int(z["contextual_param"])
    hidden, keys = floats(z["hidden_states"]), floats(z["key_metric"])
    strict = VisionZip(contextual=contextual, strict_paper=True)
    tower = {
        strict.attention.tap: floats(z["cls_attention"])[:, :, 1:].mean(1)[:, :, None, None],
        strict.keys: keys[:, 1:, None],
        CLASS_TOKEN: hidden[:, :1, None].expand(-1, hidden.shape[1] - 1, -1, -1),
    }
    tokens = tower_tokens(hidden[:, 1:], tower)
    close(strict.select(tokens, k).features, z["output_tokens"])
    selection = VisionZip(contextual=contextual).select(tokens, k - 1)
    patches = np.concatenate([z["dominant_sorted"][:, 1:], z["contextual_target_positions"]], 1) - 1
    same(selection.indices, np.sort(patches, 1))
    expected = np.take_along_axis(z["output_tokens"][:, 1:], patches.argsort(1)[..., None], 1)
    close(selection.features, expected)


def check_visionzip_anyres(z):
    """`keep_idx` (by attention) and the tokens of a tile (in raster order) begin with the class token."""
    side = 24
    dominant = torch.from_numpy(z["keep_idx"])[:, 1:].sort(-1).values - 1
    tile, place = interleave_dominant(dominant, int(z["contextual_param"]), side, int(z["width"]))
    same(floats(z["crop_features"])[tile, place], z["output"])


def check_vispruner(z):
    k, features = int(z["visual_token_num"]), floats(z["patch_features"])
    policy = VisPruner(important_ratio=float(z["important_ratio"]))
    attention = floats(z["cls_attention"]).mean(1)[:, :, None, None]
    tokens = tower_tokens(features, {policy.attention.tap: attention})
    same(policy.select(tokens, k).indices, z["keep_indices_sorted"])
    same(FasterVLM().select(tokens, k).indices, z["fastervlm_keep_indices_sorted"])


def check_prumerge(z, policy=None):
    policy = policy or PruMerge(strict_paper=True)
    hidden, q, key = floats(z["hidden_states"]), floats(z["q_proj_out"]), floats(z["k_proj_out"])
    attention = (q[:, :1] @ key.mT * q.shape[-1] ** -0.5).softmax(-1)[:, 0, 1:]
    tokens = tower_tokens(hidden[:, 1:], {ATTENTION: attention[..., None, None], KEYS: key[:, 1:, None]})
    n = attention.shape[1]
    assert int(policy.adaptive_count(tokens)) == round(float(z["adaptive_ratio"]) * n)
    selection = policy.select(tokens, 1)
    same(selection.order[0, :-1], z["center_indices"])
    summary = max(set(range(n)) - set(z["center_indices"].tolist()))
    assert selection.order[0, -1] == summary
    close(selection.features[:, torch.searchsorted(selection.indices, selection.order)[0]], z["output_tokens"])
    if type(policy) is PruMerge:  # the budget that the adaptive rule would choose gives the same answer
        by_count = PruMerge().select(tokens, len(z["center_indices"]) + 1)
        same(by_count.order, selection.order)


def check_prumerge_plus(z):
    check_prumerge(z, PruMergePlus(strict_paper=True))


def check_holov(z):
    keep, attention = int(z["keep"]), floats(z["attention"])[None]
    policy = HoloV(keep=keep, num_crops=int(z["num_crops"]), attention=lambda tokens: attention, strict_paper=True)
    tokens = VisualTokens(features=floats(z["image_tokens"])[None])
    selection = policy.select(tokens, keep)
    real = keep - int(z["num_zero_padded"])
    expected = z["positions_in_output_order"]
    assert (expected[real:] == -1).all()
    same(selection.order[0, :real], expected[:real])
    kept = torch.from_numpy(np.isin(selection.indices[0].numpy(), expected))
    same(selection.features[0, kept], tokens.features[0, np.sort(expected[:real])])
    assert not selection.features[0, ~kept].any()
    if real == keep:  # no run was full, so redistribution does nothing: the default shares out the same
        default = HoloV(keep=keep, num_crops=policy.num_crops, gamma=0.09, by="attention", attention=policy.attention)
        same(default.select(tokens, keep).order[0], expected)
        if policy.num_crops == 16:
            same(HoloV(gamma=0.09, by="attention", attention=policy.attention).select(tokens, keep).order[0], expected)


def check_hiprune(z):
    keep, width = int(z["keep_per_image"]), int(z["grid_width"])
    objects, deep = floats(z["object_layer_attention"]), floats(z["deep_layer_attention"])
    policy = HiPrune(keep=keep, alpha=float(z["alpha"]), strict_paper=True)
    of_object, of_deep = (part.tap for part in policy.attentions())
    tokens = VisualTokens(
        features=torch.zeros(*deep.shape, 1),
        tower={of_object: objects[..., None, None], of_deep: deep[..., None, None]},
        grid=(1, deep.shape[1] // width, width),
    )
    selection = policy.select(tokens, keep)
    same(selection.source_map(deep.shape[1]) >= 0, z["keep_mask"])
    assert selection.indices.shape[1] == int(z["kept"][0])


FAMILIES = {
    "prumerge": check_prumerge,
    "prumerge_plus": check_prumerge_plus,
    "visionzip": check_visionzip,
    "visionzip_anyres": check_visionzip_anyres,
    "vispruner": check_vispruner,
    "hiprune": check_hiprune,
    "holov": check_holov,
}

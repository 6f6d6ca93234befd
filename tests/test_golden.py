"""Vectors made by running the official implementations: `pytest tests/test_golden.py --golden-dir DIR`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tokenprune.budget import Budget
from tokenprune.ops import interleave_crops, mean_cosine
from tokenprune.policies import CDPruner, CDPrunerOpenVINO, DivPrune
from tokenprune.tokens import VisualTokens


def floats(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float32))


def same(actual: torch.Tensor, expected) -> None:
    np.testing.assert_array_equal(actual.numpy(), expected)


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


# File-name prefix -> check; the longest prefix that fits counts. A new family adds its line.
FAMILIES = {
    "cdpruner": check_cdpruner,
    "cdpruner_anyres_assembly": check_assembly,
    "divprune": check_divprune,
    "openvino": check_openvino,
}


def family(path: Path):
    fitting = [prefix for prefix in FAMILIES if path.name.startswith(prefix)]
    if not fitting:
        pytest.fail(
            f"{path.name}: no check for the prefix {path.stem.split('_')[0]!r}; known are {', '.join(FAMILIES)}."
        )
    return FAMILIES[max(fitting, key=len)]


def pytest_generate_tests(metafunc):
    if "vector" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden-dir")
        paths = sorted(folder.rglob("*.npz")) or [folder]
        metafunc.parametrize("vector", paths, ids=[path.name for path in paths])


def test_golden(vector):
    assert vector.is_file(), f"--golden-dir {vector} holds no .npz file."
    check = family(vector)
    with np.load(vector) as z:
        check(z)


def test_an_unknown_prefix_fails():
    with pytest.raises(pytest.fail.Exception, match="no check for the prefix 'mystery'"):
        family(Path("mystery_k64.npz"))

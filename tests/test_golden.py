"""Vectors made by running the official implementations: `pytest tests/test_golden.py --golden-dir DIR`."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden_checks import FAMILIES


def family(path: Path):
    """The check of a file: that of the longest prefix that fits."""
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

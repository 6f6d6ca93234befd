"""What the checks of golden vectors share."""

import numpy as np
import torch


def floats(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float32))


def same(actual: torch.Tensor, expected) -> None:
    np.testing.assert_array_equal(actual.numpy(), expected)

"""Nothing in the blocks of a tower waits for the device: no number is read, no size depends on one."""

import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

import tokenprune
from tests.families import BY_NAME as FAMILIES
from tests.vision_probes import POLICIES, suits
from tests.vision_towers import BY_NAME
from tokenprune import ToMe

OURS = str(Path(tokenprune.__file__).parent)
WAITS = {"tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "equal", "is_nonzero"} | {
    "nonzero", "unique", "unique_consecutive", "masked_select", "argwhere", "repeat_interleave",
}  # fmt: skip


class Waits(TorchFunctionMode):
    """Notes what of our own code would wait for a device: reading it, sizes that depend on it, lists sent to it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        lists = name in ("tensor", "as_tensor") and kwargs.get("device") is not None
        by_bool = name in ("__getitem__", "__setitem__") and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool
            for one in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if (name in WAITS or lists or by_bool) and sys._getframe(1).f_code.co_filename.startswith(OURS):
            self.found.append(name)
        return func(*args, **kwargs)


def waits(run):
    with torch.no_grad(), Waits() as mode:
        run()
    return mode.found


TOWERS = [BY_NAME[name] for name in ("clip", "dinov3", "videomae", "timm-eva")]


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.name)
@pytest.mark.parametrize("name", POLICIES)
def test_towers_of_equal_images_never_wait_again(tower, name):
    if not suits(tower, name):
        return
    model = tower.model()
    with tokenprune.wrap(model, POLICIES[name]()):
        assert waits(lambda: tower.run(model))  # answers are looked at once per block and number of tokens
        assert waits(lambda: tower.run(model)) == []


def test_a_new_size_is_looked_at_once_for_all_blocks():
    tower = BY_NAME["dinov2"]
    model = tower.model()
    with tokenprune.wrap(model, ToMe(r=3)):
        tower.run(model)
        other = {"pixel_values": torch.randn(2, 3, 32, 20)}
        assert waits(lambda: tower.run(model, other)) == ["tolist"]
        assert waits(lambda: tower.run(model, other)) == []


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_packed_towers_read_where_their_images_begin(name):
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    encode = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
    with tokenprune.wrap(model, ToMe(r=2)):
        first, second = (waits(lambda: model.model.get_image_features(**encode)) for _ in range(2))
    assert len(first) > 1
    assert second == ["tolist"]

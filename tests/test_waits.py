"""Between the projector and the first layer nothing of ours waits for the device, nor between layers.

On a device that stands in for a GPU: it computes on the CPU, refuses to mix host and device, and notes who waits. Its
logits have to be those of the CPU.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.default_layer_policies import LAYER_POLICIES
from tests.default_policies import POLICIES

ROOT = Path(__file__).parents[1]
ON_VIDEOS = [name for name, factory in POLICIES.items() if "image" not in factory().kinds]
ON_IMAGES = [name for name in POLICIES if name not in (*ON_VIDEOS, "none", "trim")]  # trim needs a CLIP model
INSIDE_VIDEOS = [name for name, factory in LAYER_POLICIES.items() if "image" not in factory().kinds]
INSIDE = [name for name in LAYER_POLICIES if name not in (*INSIDE_VIDEOS, "debiased")]  # which is to know the picture
# Policy -> how often it has to ask: how many tokens stand still, or which words count, decides what it does next
ASKS = {"prunevid": 3, "holitom": 2, "fastvid": 1, "sparsevlm": 2, "sparsevlm-subset": 2, "sparsevlm-plus": 2}
NO_CLASS_TOKEN = ("fastvid-sequential",)
CASES = [
    ("llava", "divprune", (1,), "layers"),
    *(("llava", name, (2, 1), "layers") for name in ON_IMAGES),
    *(
        (family, name, (1, 2), "layers")
        for family in ("llava_next", "internvl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
        for name in ("cdpruner", "visionzip")
    ),
    *(("llava_onevision-video", name, (1,), "layers") for name in ON_VIDEOS if name not in NO_CLASS_TOKEN),
    ("llava", "layer:fastv", (1,), "logits"),
    *(("llava", f"layer:{name}", (2, 1), "logits") for name in INSIDE),
    *(("llava_onevision-video", f"layer:{name}", (1,), "logits") for name in INSIDE_VIDEOS),
    ("qwen3_vl", "layer:fastv", (2, 1), "logits"),
]


@pytest.fixture(scope="module")
def answers():
    given = "\n".join(json.dumps(case) for case in CASES)
    command = [sys.executable, "-m", "tests.fake_device"]
    run = subprocess.run(command, input=given, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return dict(zip(CASES, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_nothing_of_ours_waits(answers, case):
    found = answers[case]
    assert found["difference"] == 0.0
    assert 0 < found["kept"] < found["total"]
    ours = [wait for wait in found["waits"] if wait[0] == "ours"]
    assert len(ours) == ASKS.get(case[1].removeprefix("layer:"), 0), Counter(map(tuple, ours))


def test_the_model_itself_does_not_ask_for_the_mask_of_what_has_no_padding(answers):
    """Whether a mask is all ones is known on the host, so it is not handed on."""

    def asks(case):
        return any(where.startswith("masking_utils") for _, _, where in answers[case]["waits"])

    assert not asks(("llava", "divprune", (1,), "layers"))
    assert asks(("llava", "divprune", (2, 1), "layers"))  # padded: it has to

"""The policies for pictures that need no training, as `tokenprune bench` can run them on random weights."""

from ..training_free import training_free

OTHERS = ("none", "debiased")  # no policy of its own; needs a policy to correct
STAGES = ("projector", "layer")


def policies() -> list[str]:
    """Names of all that take a budget, in front of and inside the language model.

    Those inside the tower are none of these: what they leave there depends on the tower, and not all fit every tower.
    """
    known = training_free().items()
    return [name for name, cls in known if "image" in cls.kinds and cls.stage in STAGES and name not in OTHERS]

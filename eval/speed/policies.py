"""The policies for pictures that need no training, as `tokenprune bench` can run them on random weights."""

from ... import get_policy, list_policies

OTHERS = ("none", "debiased")  # no policy of its own; needs a policy to correct
STAGES = ("projector", "layer")


def policies() -> list[str]:
    """Names of all that take a budget, in front of and inside the language model.

    Those inside the tower are none of these: what they leave there depends on the tower, and not all fit every tower.
    """
    found = []
    for name in list_policies():
        cls = get_policy(name)
        ours = cls.__module__.startswith("tokenprune.") and "image" in cls.kinds and cls.stage in STAGES
        if ours and name not in OTHERS and not hasattr(cls, "trained"):
            found.append(name)
    return found

"""The policies that come with this package and need no training, which most tables are about."""

from __future__ import annotations

from .. import Policy, get_policy, list_policies


def training_free(stage: str | None = None) -> dict[str, type[Policy]]:
    """Name -> class of those at the stage (None: at any). Those that others have registered are not among them."""
    known = {name: get_policy(name) for name in list_policies()}
    return {
        name: cls
        for name, cls in known.items()
        if cls.__module__.startswith("tokenprune.") and not hasattr(cls, "trained") and stage in (None, cls.stage)
    }

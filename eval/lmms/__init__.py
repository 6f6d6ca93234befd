"""lmms-eval with pruned models: `--model tokenprune` by entry point, and `tokenprune eval`, which prompts as the base.

Nothing of lmms-eval is imported before a class is asked for.
"""


def manifests() -> list:
    """What the entry point group `lmms_eval.models` is told."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="tokenprune", chat_class_path=f"{__name__}.model.TokenPrune")]

"""What every trained module has: its own folder of safetensors and JSON, and the model that it was trained for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import nn

from ..errors import PredictorError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Predictor(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="tokenprune",
    tags=["token-pruning"],
):
    """A small module beside a frozen model. Saved as model.safetensors and config.json, never as pickle.

    Args:
        base: fingerprint of the model that it is trained for, see `tokenprune.fingerprint`; empty for none.

    `save_pretrained(folder)`, `from_pretrained(folder or hub id)` and `push_to_hub(id)` are those of huggingface_hub.
    """

    kind: ClassVar[str] = ""

    def __init__(self, *, base: dict[str, Any] | None = None):
        super().__init__()
        self.base = dict(base or {})

    @property
    def parameters_count(self) -> int:
        return sum(one.numel() for one in self.parameters())

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Predictor:
        """The module of a folder or of the hub, in eval mode.

        Raises:
            PredictorError: there is none, or it is of another kind.
        """
        folder = Path(source)
        try:
            config = folder / CONFIG if folder.is_dir() else Path(hf_hub_download(str(source), CONFIG))
            kind = json.loads(config.read_text()).get("kind")
        except (OSError, ValueError, AttributeError, HfHubHTTPError) as error:
            raise PredictorError(
                f"predictor={str(source)!r} has no {CONFIG} that can be read ({_first_line(error)}): give a folder "
                "that `tokenprune train` wrote, or the id of one on the hub."
            ) from None
        if kind != cls.kind:
            raise PredictorError(f"predictor={str(source)!r} is of kind {kind!r}, and {cls.kind!r} is asked for.")
        try:
            return super().from_pretrained(source, **options)
        except (OSError, TypeError, RuntimeError, SafetensorError) as error:
            raise PredictorError(
                f"predictor={str(source)!r} cannot be loaded ({_first_line(error)}): {CONFIG} and {WEIGHTS} do not "
                "belong together, or one of them is not whole; train it again."
            ) from None

    @classmethod
    def _from_pretrained(cls, *, model_id: str, strict: bool = True, map_location: str = "cpu", **given: Any):
        """From safetensors alone; huggingface_hub would go on with pickle."""
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        where = {name: given.pop(name) for name in names if name in given}
        folder = Path(model_id)
        file = folder / WEIGHTS if folder.is_dir() else Path(hf_hub_download(model_id, WEIGHTS, **where))
        return cls._load_as_safetensor(cls(**given), str(file), map_location, strict)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        config = {"kind": self.kind, **(self._hub_mixin_config or {})}
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")

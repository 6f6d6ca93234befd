"""Files that a visitor gives, read within limits."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tokenprune import Video, read_video
from tokenprune.errors import InputError, TokenPruneError
from tokenprune.readers import open_image

MEGABYTES = 50  # of a file
PIXELS = 40_000_000  # of a picture, or of a frame
FRAMES = 32  # of a video, at most
EDGE = 768  # longest edge of a frame as it is read


@dataclass(frozen=True)
class Given:
    """A picture, or a video.

    Attributes:
        name: of the file.
        pictures, videos: one of both holds one.
    """

    name: str
    pictures: list[Image.Image] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)

    @property
    def frames(self) -> list[np.ndarray]:
        """uint8 [height, width, 3] each; of a picture one."""
        return list(self.videos[0].frames) if self.videos else [np.asarray(self.pictures[0])]

    @property
    def times(self) -> tuple[float, ...] | None:
        """Seconds of the frames, None of a picture."""
        return self.videos[0].times if self.videos else None


def read(path: str | None, frames: int) -> Given:
    """The picture or video in a file; an animated GIF, PNG or WebP is a video.

    Args:
        frames: of a video, at equal steps.

    Raises:
        InputError: no file, an empty, large or broken one, or something else.
    """
    if not path:
        raise InputError("There is no picture and no video yet: upload one, or choose an example.")
    file = Path(path)
    with _named(file):
        if not file.stat().st_size:
            raise InputError(f"file={path!r} is empty: give an intact one.")
        if file.stat().st_size > MEGABYTES << 20:
            raise InputError(f"file={path!r} is larger than {MEGABYTES} MB: give a smaller one.")
        if _still(file):
            return Given(file.name, pictures=[open_image(file)])
        return Given(file.name, videos=[read_video(file, frames=min(frames, FRAMES), size=EDGE)])


def _still(file: Path) -> bool:
    """Whether it is a picture that does not move; what Pillow does not know may be a video."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            animated = getattr(image, "is_animated", False)
    except Image.DecompressionBombError:
        width, height, animated = PIXELS, 2, False
    except (OSError, ValueError, SyntaxError):
        return False
    if width * height > PIXELS:
        raise InputError(f"file={str(file)!r} has more than {PIXELS // 1_000_000} million pixels: give a smaller one.")
    return not animated


@contextmanager
def _named(file: Path):
    """Errors say the name of the file, and not where the page keeps it."""
    try:
        yield
    except TokenPruneError as error:
        raise InputError(str(error).replace(str(file), file.name)) from None

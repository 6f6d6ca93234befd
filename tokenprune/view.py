"""Pictures of what became of visual tokens: kept patches clear, dropped ones dark, a colour for what was merged."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from .report import TowerReport, UnitReport

DARK = np.array([0.07, 0.08, 0.11])  # what dropped patches fade into
FADE, TINT = 0.8, 0.4  # shares of that, and of the colour of merged patches
# Okabe and Ito's colours, which people who see fewer tell apart, too, but for black and grey.
PALETTE = np.array(
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]]
)
PAPER, INK, MUTED = "#ffffff", "#1f2328", "#656d76"
SHEET, SHAPE, COLUMNS, CELL = 1600, 2.0, 8, 560  # pixels across, the shape wanted, most cells in a row, pixels of each
GAP, STRIP, TEXT = 12, 26, 16  # pixels between cells, under each, and of its letters
OVERLAY = 480  # pixels, the longest edge of an overlay
PLAYED = (0.08, 1.0)  # seconds that a step of an overlay is shown, at least and at most
RATE = 25  # frames per second of an MP4
Entry = tuple[str, tuple]  # of a legend: what it says, and the colours in front of it
CLEAR: Entry = ("clear: kept", ("#d0d7de",))
DROPPED: Entry = ("dark: dropped", (tuple((255 * DARK).astype(int).tolist()),))
MERGED: Entry = (
    "a colour: merged into one token, a ring where it stands",
    tuple(tuple(color) for color in PALETTE[:3].tolist()),
)


@dataclass(frozen=True)
class Fate:
    """What became of every token of a video, or of a picture, which is one step.

    Attributes:
        source: [steps, rows, columns], number of the survivor that carries each token, -1 for none.
        stands: [steps, rows, columns] bool, where the survivors stand.
        color: [survivors], place in the palette of those that carry several tokens, -1 for the others.
    """

    source: np.ndarray
    stands: np.ndarray
    color: np.ndarray

    @classmethod
    def of(cls, units: Sequence[UnitReport | TowerReport]) -> Fate:
        """Of the units of one video: itself, or its frames.

        Raises:
            InputError: their tokens form no grid.
        """
        grids = {unit.grid and unit.grid[1:] for unit in units}
        if len(grids) != 1 or None in grids or any(math.prod(unit.grid) != unit.total for unit in units):
            raise InputError(
                f"the visual tokens lie in {len(units)} units with the grids {[unit.grid for unit in units]}, no "
                "frames of one size: view pictures that are encoded whole, or videos."
            )
        sources, stands, before = [], [], 0
        for unit in units:
            source, stand = unit.source.numpy(), np.zeros(unit.total, bool)
            stand[unit.indices.numpy()] = True
            sources.append(np.where(source >= 0, source + before, -1).reshape(unit.grid))
            stands.append(stand.reshape(unit.grid))
            before += unit.kept
        source = np.concatenate(sources)
        several = np.bincount(source[source >= 0], minlength=before) > 1
        return cls(source, np.concatenate(stands), np.where(several, (several.cumsum() - 1) % len(PALETTE), -1))

    @property
    def merged(self) -> bool:
        """Whether any token carries others."""
        return bool((self.color >= 0).any())

    def counts(self, step: int) -> tuple[int, int]:
        """Tokens of one step: those that stand in it, and those that another one carries."""
        stands = self.stands[step]
        return int(stands.sum()), int(((self.source[step] >= 0) & ~stands).sum())


def spread(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """[rows, columns] -> [height, width], the value of the patch that each pixel is in."""
    rows, columns = values.shape
    return values[np.arange(height)[:, None] * rows // height, np.arange(width) * columns // width]


def faded(pixels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[height, width, 3] in 0..1, dark where `kept` is False."""
    return np.where(kept[..., None], pixels, FADE * DARK + (1 - FADE) * pixels)


def painted(picture: Image, fate: Fate, step: int = 0) -> Image:
    """One step: dropped patches dark, merged ones in the colour of their token, with a ring where that stands."""
    from PIL import Image, ImageDraw

    width, height = picture.size
    source = spread(fate.source[step], height, width)
    color = np.where(source >= 0, fate.color[source], -1)
    pixels = faded(np.asarray(picture.convert("RGB")) / 255, source >= 0)
    pixels = np.where(color[..., None] >= 0, (1 - TINT) * pixels + TINT * PALETTE[color] / 255, pixels)
    for axis in (0, 1):  # lines between different tokens, one of them merged
        here = np.moveaxis(pixels, axis, 0)
        one, color_one = np.moveaxis(source, axis, 0), np.moveaxis(color, axis, 0)
        edge = (one[1:] != one[:-1]) & ((color_one[1:] >= 0) | (color_one[:-1] >= 0))
        here[1:][edge] *= 0.6
    drawn = Image.fromarray((255 * pixels).round().astype(np.uint8))
    draw, (rows, columns) = ImageDraw.Draw(drawn), fate.source.shape[1:]
    for row, column in np.argwhere(fate.stands[step] & (fate.color[fate.source[step]] >= 0)):
        left, right = (math.ceil(edge * width / columns) for edge in (column, column + 1))
        top, bottom = (math.ceil(edge * height / rows) for edge in (row, row + 1))
        ring = min(max(2, min(right - left, bottom - top) // 7), 8)
        chosen = tuple(PALETTE[fate.color[fate.source[step, row, column]]].tolist())
        if min(right - left, bottom - top) > 2 * ring:
            draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=chosen, width=ring)
    return drawn


def sheet(frames: Sequence[np.ndarray], fate: Fate, *, title: str, times: Sequence[float] | None = None) -> Image:
    """A contact sheet: a cell per step with its first frame, time and counts.

    Args:
        frames: [height, width, 3] uint8 each; where a step is made of several, they follow each other.
        title: the first lines of the header.
        times: seconds of the frames.
    """
    from PIL import Image, ImageDraw

    steps = len(fate.source)
    shown, per = _firsts(frames, steps)
    width, columns = layout(steps, shown[0].shape[1] / shown[0].shape[0])
    height = round(width * shown[0].shape[0] / shown[0].shape[1])
    kept, total = int(fate.stands.sum()), fate.source.size
    grid = f"{fate.source.shape[1]}x{fate.source.shape[2]}"
    what = f"{steps} steps of {grid}" if steps > 1 else grid
    of = f"{what} tokens" + (f", {per} frames each, the first is shown" if per > 1 else "")
    entries = [CLEAR, DROPPED] + ([MERGED] if fate.merged else [])
    across, below = columns * (width + GAP) + GAP, math.ceil(steps / columns) * (height + STRIP + GAP)
    page, top = headed(across, below, title, f"kept {kept}/{total} ({kept / total:.1%}) of {of}", entries)
    draw = ImageDraw.Draw(page)
    for step, frame in enumerate(shown):
        left, y = GAP + step % columns * (width + GAP), top + step // columns * (height + STRIP + GAP)
        picture = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
        page.paste(painted(picture, fate, step), (left, y))
        time = "" if times is None else clock(times[step * per])
        label(draw, (left, y + height, width), time, _counted(fate, step))
    return page


def overlay(frames: Sequence[np.ndarray], fate: Fate, *, times: Sequence[float]) -> list[Image]:
    """A picture per step, with its time and counts under it; all of one size, even in both directions."""
    from PIL import Image, ImageDraw

    shown, per = _firsts(frames, len(fate.source))
    scale = OVERLAY / max(shown[0].shape[:2])
    height, width = (2 * max(1, round(edge * scale / 2)) for edge in shown[0].shape[:2])
    pages = []
    for step, frame in enumerate(shown):
        page = Image.new("RGB", (width, height + STRIP), PAPER)
        picture = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
        page.paste(painted(picture, fate, step))
        label(ImageDraw.Draw(page), (0, height, width), clock(times[step * per]), _counted(fate, step))
        pages.append(page)
    return pages


def save_overlay(pages: Sequence[Image], folder: Path, times: Sequence[float]) -> list[Path]:
    """Writes overlay.gif and, with PyAV, overlay.mp4.

    Args:
        times: seconds of the frames; a page is shown until the next begins, for PLAYED[0] to PLAYED[1] seconds.
    """
    gaps = np.diff(times[:: math.ceil(len(times) / len(pages))])
    seconds = np.clip([*gaps, np.median(gaps) if len(gaps) else 1], *PLAYED)
    gif = folder / "overlay.gif"
    pages[0].save(
        gif,
        save_all=True,
        append_images=list(pages[1:]),
        duration=(1000 * seconds).round().astype(int).tolist(),
        loop=0,
    )
    return [gif, *_save_mp4(pages, seconds, folder / "overlay.mp4")]


def clock(seconds: float) -> str:
    """3.2 -> "3.2 s", 63.2 -> "1:03.2", 3663 -> "1:01:03"."""
    tenths = round(10 * seconds)
    if tenths < 600:
        return f"{tenths / 10:.1f} s"
    minutes, rest = divmod(tenths, 600)
    if minutes < 60:
        return f"{minutes}:{rest / 10:04.1f}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 10:02d}"


def _save_mp4(pages: Sequence[Image], seconds: np.ndarray, path: Path) -> list[Path]:
    try:
        import av
    except ImportError:
        return []
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=RATE)
        stream.width, stream.height = pages[0].size
        stream.pix_fmt = "yuv420p"
        for page, duration in zip(pages, seconds, strict=True):
            for _ in range(max(1, round(duration * RATE))):
                file.mux(stream.encode(av.VideoFrame.from_image(page)))
        file.mux(stream.encode())
    return [path]


def _firsts(frames: Sequence[np.ndarray], steps: int) -> tuple[list[np.ndarray], int]:
    """The first frame of each step, and how many make one."""
    per = math.ceil(len(frames) / steps)
    if math.ceil(len(frames) / per) != steps:
        raise InputError(f"{len(frames)} frames became {steps} steps, which does not say which became which.")
    return [np.asarray(frame) for frame in frames[::per]], per


def layout(cells: int, aspect: float) -> tuple[int, int]:
    """(width of a cell, columns) of a sheet of about the wanted shape, with few empty cells."""

    def badness(columns: int) -> float:
        rows = math.ceil(cells / columns)
        shape = SHEET / (rows * (SHEET / columns / aspect + STRIP + GAP))
        return 0.5 * abs(math.log(shape / SHAPE)) + 3.5 * (1 - cells / (rows * columns))

    columns = min(range(1, min(cells, COLUMNS) + 1), key=badness)
    return min((SHEET - GAP) // columns - GAP, CELL), columns


def headed(across: int, below: int, title: str, line: str, entries: Sequence[Entry]) -> tuple[Image, int]:
    """An empty page with a header and room `below` it, and where that begins.

    Args:
        title: its first lines, which are wrapped.
        line: behind them.
        entries: of the legend.
    """
    from PIL import Image, ImageDraw

    across = max(across, 760)
    lines = [line for part in title.splitlines() for line in textwrap.wrap(part, across // 11)]
    top = GAP + 28 * len(lines) + 2 * STRIP + 2 * GAP
    page = Image.new("RGB", (across, top + below), PAPER)
    draw = ImageDraw.Draw(page)
    for number, one in enumerate(lines):
        draw.text((GAP, GAP + 28 * number), one, INK, font(22))
    y = 1.5 * GAP + 28 * len(lines)
    draw.text((GAP, y), line, MUTED, font(18))
    x, y, letters = GAP, y + STRIP, font(TEXT)
    for text, colors in entries:
        for color in colors:
            draw.rectangle((x, y + 4, x + 14, y + 18), fill=color)
            x += 16
        draw.text((x + 4, y + 11), text, MUTED, letters, anchor="lm")
        x += 4 + draw.textlength(text, letters) + 20
    return page, top


def label(draw: ImageDraw, place: tuple[int, int, int], left: str, right: str) -> None:
    """Text under a cell, whose left end, lower end and width are `place`."""
    x, y, width = place
    letters = font(TEXT)
    if (needed := draw.textlength(f"{left}  {right}", letters)) > width:
        letters = font(TEXT * width / needed)
    draw.text((x + 1, y + STRIP / 2), left, INK, letters, anchor="lm")
    draw.text((x + width - 1, y + STRIP / 2), right, MUTED, letters, anchor="rm")


def _counted(fate: Fate, step: int) -> str:
    kept, carried = fate.counts(step)
    return f"{kept} kept" + (f", {carried} merged" if fate.merged else "")


def font(size: float):
    from PIL import ImageFont

    return ImageFont.load_default(size)

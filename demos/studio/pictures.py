"""What the page shows of an answer: overlays, score maps, bars of times."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from tokenprune import Report
from tokenprune.errors import InputError
from tokenprune.view import Fate, overlay, painted, sheet, spread
from tokenprune.view_merges import mosaic

from .asking import PARTS, Answer
from .uploads import Given

EDGE = 640  # longest edge of a picture on the page
HEAT = 0.6  # share of the colour of a score over the picture
COLORS = {"tower": "#8da0cb", "selection": "#fc8d62", "prefill": "#66c2a5", "decode": "#e5c494"}  # Set2 of ColorBrewer


@dataclass(frozen=True)
class Shown:
    """Pictures of one pruned answer.

    Attributes:
        whole: of all frames, or the one picture.
        steps: a picture of each step of a video; none of a picture.
        missing: why there is none, else empty.
    """

    whole: Image.Image | None = None
    steps: tuple[Image.Image, ...] = ()
    missing: str = ""


def kept(given: Given, report: Report) -> Shown:
    """Kept tokens clear, dropped ones dark, merged ones coloured; inside a tower the region of each token left."""
    towers = [tower for tower in report.towers if tower.kept < tower.total]
    try:
        if towers and given.times is None and len(towers) == 1:
            return Shown(mosaic(_sized(given), Fate.of(towers)))
        fate = Fate.of(towers if towers and given.times is not None else report.units)
    except InputError as error:
        return Shown(missing=str(error))
    if given.times is None:
        return Shown(painted(_sized(given), fate))
    if len(fate.source) > len(given.frames):
        return Shown(missing="The tokens of this video lie in more steps than it has frames.")
    whole = sheet(given.frames, fate, title=given.name, times=given.times)
    return Shown(whole, tuple(overlay(given.frames, fate, times=given.times)))


def scores(given: Given, answer: Answer) -> Shown:
    """What tokens were chosen by, from dark violet (lowest) to yellow (highest), over the picture or each step."""
    units = answer.report.units if answer.report else []
    grids = {unit.grid and unit.grid[1:] for unit in units}
    if answer.scores is None:
        return Shown(missing="This policy chooses tokens together, or without a score: there is no number for each.")
    if len(grids) != 1 or None in grids or len(answer.scores) != sum(unit.total for unit in units):
        return Shown(missing="Not every token of the picture was given a score, or they form no grid.")
    values = answer.scores.reshape(-1, *grids.pop()).numpy()
    low, high = np.nanmin(values), np.nanmax(values)
    values = (values - low) / (high - low or 1.0)
    frames = given.frames
    per = -(-len(frames) // len(values))
    pages = tuple(_heated(_sized(given, number * per), one) for number, one in enumerate(values))
    return Shown(pages[0]) if given.times is None else Shown(pages[0], pages)


def _heated(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """[rows, columns] in 0..1 over a picture; NaN (left before) dark."""
    from matplotlib import colormaps

    colors = colormaps["plasma"](values)[..., :3]
    colors[np.isnan(values)] = 0.08
    wide = np.stack([spread(channel, picture.height, picture.width) for channel in np.moveaxis(colors, -1, 0)], -1)
    gray = np.asarray(picture.convert("L").convert("RGB")) / 255
    return Image.fromarray((255 * (HEAT * wide + (1 - HEAT) * gray)).round().astype(np.uint8))


def _sized(given: Given, frame: int = 0) -> Image.Image:
    picture = Image.fromarray(given.frames[frame])
    scale = EDGE / max(picture.size)
    return picture.resize([max(1, round(edge * scale)) for edge in picture.size], Image.Resampling.LANCZOS)


def bars(rows: dict[str, Answer]) -> str:
    """HTML: where the time of each answer went, at one scale; beside it, time to the first token."""
    rows = {name: answer for name, answer in rows.items() if answer.ms}
    if not rows:
        return ""
    longest = max(sum(answer.ms.values()) for answer in rows.values())
    legend = "".join(f'<span class="key"><i style="background:{COLORS[part]}"></i>{part}</span>' for part in PARTS)
    lines = []
    for name, answer in rows.items():
        parts = "".join(
            f'<i style="width:{100 * ms / longest:.2f}%;background:{COLORS[part]}" title="{part} {ms:.1f} ms"></i>'
            for part, ms in answer.ms.items()
        )
        against = answer.report and "dense" in rows
        times = f" <b>{rows['dense'].first_ms / answer.first_ms:.2f}x</b>" if against else ""
        lines.append(
            f'<div class="bar"><span class="name">{escape(name)}</span><span class="track">{parts}</span>'
            f'<span class="sum">{answer.first_ms:.1f} ms{times}</span></div>'
        )
    legend += '<span class="last">to the first token</span>'
    return f'<div class="bars"><div class="legend">{legend}</div>{"".join(lines)}</div>'


def facts(answer: Answer) -> str:
    """HTML: tokens, times and estimates of one answer."""
    report, found = answer.report, []
    if report is not None:
        left = sum(tower.kept for tower in report.towers), sum(tower.total for tower in report.towers)
        if left[1] > left[0]:
            found.append(("patches left in the tower", f"{left[0]} of {left[1]} ({left[0] / left[1]:.1%})"))
        found.append(("visual tokens kept", f"{report.kept} of {report.total} ({report.kept / report.total:.1%})"))
        cost = report.cost() or {}
        for what, name in (("prefill_flops", "prefill, estimated"), ("kv_bytes", "KV cache, estimated")):
            if f"{what}_dense" in cost:
                found.append((name, f"{cost[f'{what}_pruned'] / cost[f'{what}_dense']:.1%} of dense"))
    found += [(part, f"{ms:.1f} ms") for part, ms in answer.ms.items() if ms or report is not None]
    if answer.ms:
        found.append(("further tokens", "none" if answer.rate is None else f"{answer.rate:.0f} a second"))
    return (
        "<dl class='facts'>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in found) + "</dl>"
        if found
        else ""
    )

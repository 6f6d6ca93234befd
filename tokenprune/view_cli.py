"""`tokenprune view`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import (
    LONGEST_EDGE,
    Device,
    DType,
    End,
    Fields,
    Fps,
    Frames,
    Keep,
    ModelName,
    Per,
    PolicyName,
    Positions,
    Prepared,
    ReaderName,
    Size,
    Start,
    budgeted,
    one_sentence,
    prepared,
)
from .errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from .policies import Policy
    from .policies.vision import VisionPolicy
    from .report import TowerReport
    from .view_merges import Noted


@one_sentence()
def view(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder to write sheet.png (merges.png), overlay.gif and overlay.mp4 to.")],
    video: Annotated[Path | None, typer.Option(help="Video, GIF or folder of pictures.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image file, instead of a video.")] = None,
    prompt: Annotated[str, typer.Option(help="What is asked: some policies keep what it is about.")] = "What happens?",
    frames: Frames = None,
    fps: Fps = None,
    start: Start = 0.0,
    end: End = None,
    size: Size = LONGEST_EDGE,
    reader: ReaderName = "decord",
    policy: PolicyName = "cdpruner",
    stage: Annotated[str, typer.Option(help="vision: inside the tower, projector: behind it; as the policy.")] = "",
    keep: Keep = "",
    per: Per = "image",
    fields: Fields = None,
    positions: Positions = "",
    dtype: DType = "auto",
    device: Device = "",
) -> None:
    """Draw what a policy keeps, drops and merges of a video or an image, frame by frame; inside a tower, in steps."""
    import numpy as np

    from .view import Fate, overlay, save_overlay, sheet
    from .view_merges import watched

    pruning = budgeted(policy, keep, per, fields)
    if (video is None) == (image is None):
        raise InputError(
            "image and video are both " + ("missing" if video is None else "given") + ": give one of them."
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"out={str(out)!r} is a file: give the path of a folder.")
    if stage and stage != pruning.stage:
        raise InputError(f"stage={stage!r}, and policy {policy!r} works at stage {pruning.stage!r}: drop one of them.")
    how = {"frames": frames, "fps": fps, "start": start, "end": end, "size": size, "reader": reader}
    given = prompt, [image] if image else [], [video] if video else [], how
    options = {"positions": positions or None, "dtype": dtype, "device": device}
    title, noted, inside = _short(pruning), [], pruning.stage == "vision"
    if inside:
        pruning, noted = watched(pruning)
        options["classifies"] = "videos" if video else "images"
    with prepared(model, pruning, *given, **options) as one:
        one.run()
        report = one.handle.report()
    shown = one.videos[0].frames if video else [np.asarray(one.pictures[0])]
    times, name = None, (video or image).name
    if video:
        times, name = one.videos[0].times, f"{name}, {len(shown)} frames of {one.videos[0].duration:g} s"
    where = f" in the tower of {Path(model).name}" if inside else ""
    seen, title = _seen(_reader(one), shown), f"{title}{where}\n{name}"
    if inside:
        drawn = _inside(one, pruning, report.towers, noted, seen, title, times)
    else:
        drawn = sheet(seen, Fate.of(report.units), title=title, times=times)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / ("merges.png" if inside else "sheet.png")]
    drawn.save(written[0])
    if times is not None:
        fate = Fate.of(report.towers if inside else report.units)
        written += save_overlay(overlay(seen, fate, times=times), out, times)
    typer.echo(f"{report}\nwrote {', '.join(map(str, written))}")


def _inside(
    one: Prepared,
    policy: VisionPolicy,
    towers: list[TowerReport],
    noted: list[Noted],
    seen: list[np.ndarray],
    title: str,
    times: Sequence[float] | None,
) -> Image:
    """What became of the patches of a picture, of its tiles, of a clip, or of the frames of a video one by one."""
    from .view import Fate, clock, sheet
    from .view_merges import merges, on_the_way, pairs

    if all(tower.kept == tower.total for tower in towers):
        raise InputError(f"policy {policy.name!r} leaves every patch of this: ask it to remove some.")
    if any(tower.grid is None for tower in towers):
        raise UnsupportedModelError(
            f"where the {towers[0].total} patches that the tower of {one.model.config.model_type!r} sees lie in the "
            "picture is not known: view a policy of stage 'projector'."
        )
    fused = not policy.merges
    if len(towers) == 1 and times is not None:
        return sheet(seen, Fate.of(towers), title=title, times=times)
    if len(towers) == 1:
        return merges(seen[0], [*on_the_way(noted, towers[0]), ("in the end", towers[0])], title=title, fused=fused)
    if times is None:
        return pairs(_tiles(one, len(towers)), towers, [""] * len(towers), title=title, fused=fused)
    return pairs(seen, towers, [clock(time) for time in times], title=title, fused=fused)


def _reader(one: Prepared) -> Any:
    """What makes pixels that the model reads of pictures or frames."""
    return getattr(one.processor, "video_processor" if one.videos else "image_processor", one.processor)


def _tiles(one: Prepared, count: int) -> list[np.ndarray]:
    """What a processor cut of a picture, as the tower sees it."""
    import torch

    pixels, reader = one.inputs["pixel_values"].float().cpu(), _reader(one)
    if pixels.ndim < 4 or pixels.shape[:-3].numel() != count:
        raise UnsupportedModelError(
            f"the tower sees {count} parts of this picture, and what {type(one.processor).__name__} makes of it has "
            f"the shape {list(pixels.shape)}: view a policy of stage 'projector'."
        )
    if reader.do_normalize:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (reader.image_mean, reader.image_std))
        pixels = pixels * std + mean
    pixels = (255 * pixels.flatten(0, -4).clamp(0, 1)).round().to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).numpy())


def _short(policy: Policy) -> str:
    """Its name and budget, and what else is not as by default."""
    fields = {field.name: (getattr(policy, field.name), field.default) for field in dataclasses.fields(policy)}
    said = [
        f"{name}={value!r}"
        for name, (value, default) in fields.items()
        if value != default or (name == "keep" and value is not None)
    ]
    return ", ".join([policy.name, *said])


def _seen(processor: Any, frames: Any) -> list[np.ndarray]:
    """The part of frames that the processor leaves of them: some cut out the middle after resizing."""
    height, width = frames[0].shape[:2]
    size, crop = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    if not getattr(processor, "do_center_crop", False) or not size or not crop:
        return list(frames)
    edge = _edge(size, "shortest_edge")
    scale = edge / min(height, width) if edge else None
    resized = (height * scale, width * scale) if edge else (_edge(size, "height"), _edge(size, "width"))
    cut = [
        max(0, round(length * (1 - min(1, _edge(crop, name) / all_of_it)) / 2))
        for length, name, all_of_it in zip((height, width), ("height", "width"), resized, strict=True)
    ]
    return [frame[cut[0] : height - cut[0], cut[1] : width - cut[1]] for frame in frames]


def _edge(size: Any, name: str) -> int | None:
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)

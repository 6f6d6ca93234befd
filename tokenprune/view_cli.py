"""`tokenprune view`."""

from __future__ import annotations

import dataclasses
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
    ReaderName,
    Size,
    Start,
    budgeted,
    encode,
    frames_are_images,
    load,
    load_tower,
    one_sentence,
)
from .errors import InputError
from .readers import open_image

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from .policies import Policy
    from .video import Video


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

    from .video import read_video
    from .view import Fate, overlay, save_overlay, sheet
    from .wrap import wrap

    pruning = budgeted(policy, keep, per, fields)
    if (video is None) == (image is None):
        raise InputError(
            "image and video are both " + ("missing" if video is None else "given") + ": give one of them."
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"out={str(out)!r} is a file: give the path of a folder.")
    if stage and stage != pruning.stage:
        raise InputError(f"stage={stage!r}, and policy {policy!r} works at stage {pruning.stage!r}: drop one of them.")
    pictures = [open_image(image)] if image else []
    how = {"frames": frames, "fps": fps, "start": start, "end": end, "size": size, "reader": reader}
    videos = [read_video(video, **how)] if video else []
    if pruning.stage == "vision":
        _inside(model, pruning, pictures, videos, out, dtype=dtype, device=device)
        return
    loaded, processor = load(model, dtype=dtype, device=device)
    inputs, placed = encode(processor, loaded, prompt, pictures, videos)
    with wrap(
        loaded,
        pruning,
        positions=positions or None,
        images_are_frames=frames_are_images(inputs, pictures, videos),
        tokenizer=getattr(processor, "tokenizer", None),
    ) as handle:
        handle.instruction = prompt if placed else None
        handle.image_sizes = None if videos else [picture.size for picture in pictures]
        loaded.generate(**inputs, max_new_tokens=1, do_sample=False)
        report = handle.report()
    fate = Fate.of(report.units)
    given = videos[0].frames if videos else [np.asarray(picture) for picture in pictures]
    seen = _seen(processor.video_processor if videos else processor.image_processor, given)
    times = videos[0].times if videos else None
    name = (video or image).name
    if times is not None:
        name += f", {len(given)} frames of {videos[0].duration:g} s"
    drawn = sheet(seen, fate, title=f"{_short(pruning)}\n{name}", times=times)
    out.mkdir(parents=True, exist_ok=True)
    drawn.save(out / "sheet.png")
    written = [out / "sheet.png"]
    if times is not None:
        written += save_overlay(overlay(seen, fate, times=times), out, times)
    typer.echo(f"{report}\nwrote {', '.join(map(str, written))}")


def _inside(
    model: str, policy: Policy, pictures: list[Image], videos: list[Video], out: Path, *, dtype: str, device: str
) -> None:
    """Of a policy inside a vision transformer: a classifier, or the tower of a vision-language model."""
    import numpy as np
    import torch

    from .view import Fate, overlay, save_overlay, sheet
    from .view_merges import merges, on_the_way, watched
    from .wrap import wrap

    loaded, processor = load_tower(model, video=bool(videos), dtype=dtype, device=device)
    reader = getattr(processor, "image_processor", processor)
    if reader is processor:  # a classifier
        given = [list(videos[0].frames)] if videos else pictures
        try:
            inputs = processor(given, return_tensors="pt").to(loaded.device, loaded.dtype)
        except ValueError as error:
            raise InputError(f"{type(processor).__name__} cannot read this: {error}") from None
    elif videos:
        raise InputError(f"model={model!r} sees frames one by one: give one as an image, or a classifier of clips.")
    else:
        inputs, _ = encode(processor, loaded, "What is this?", pictures)
    frames = getattr(loaded.config, "num_frames", None)
    if videos and reader is processor and frames is not None and len(videos[0].frames) != frames:
        raise InputError(
            f"the video gives {len(videos[0].frames)} frames, and model={model!r} takes {frames}: add --frames "
            f"{frames}."
        )
    noting, noted = watched(policy)
    with torch.inference_mode(), wrap(loaded, noting) as handle:
        loaded(**inputs)
        report = handle.report()
    if not report.towers:
        raise InputError(f"policy {policy.name!r} leaves every patch of this picture: ask it to remove some.")
    tower, title = report.towers[0], f"{_short(policy)} in the tower of {Path(model).name}"
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "merges.png"]
    if videos:
        fate, times = Fate.of([tower]), videos[0].times
        sheet(videos[0].frames, fate, title=title, times=times).save(written[0])
        written += save_overlay(overlay(videos[0].frames, fate, times=times), out, times)
    else:
        seen = _seen(reader, [np.asarray(pictures[0])])[0]
        panels = [*on_the_way(noted, tower), ("in the end", tower)]
        merges(seen, panels, title=title).save(written[0])
    typer.echo(f"{report}\nwrote {', '.join(map(str, written))}")


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

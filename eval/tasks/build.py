"""Writes the folder that lmms-eval reads: YAML and functions as they lie here, and documents as parquet and clips."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import InputError, InvalidArgumentError, nearest

VERSION = 1  # of the documents; another one has them written anew
TASKS = {"shapes": 2400, "shapes_video": 2000, "easy_vqa": 9673}  # documents of each
GROUP = "tokenprune_local"
VIDEO = "shapes_video"
RATE = 4  # frames a second
ROWS = 256  # of a parquet row group
HERE = Path(__file__).parent
INSTALL = "pip install tokenprune-vlm[eval]"


def built(folder: Path, names: Sequence[str] | None = None, *, count: int | None = None) -> Path:
    """The folder, with everything `lmms_eval --include_path` needs for these tasks; what is there already stays.

    Every file appears at once, and a task's YAML after its data: a build that is stopped, or runs twice at a time,
    leaves no task half, and the next call goes on from it.

    Args:
        folder: made if missing.
        names: of `TASKS`, or `GROUP` for all of them; all if None.
        count: documents of each task, from the first, of easy_vqa no more than there are; all if None.

    Raises:
        InvalidArgumentError: an unknown name, or a count out of range.
        InputError: a package is missing, or the folder cannot be written.
    """
    names = named(names)
    if count is not None and count < 1:
        raise InvalidArgumentError(f"count={count} is no number of documents: give 1 or more.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("_local", "utils.py"):
            _put(folder / name, (HERE / name).read_text())
        for name in names:
            wanted = count or TASKS[name]
            _build(folder, name, min(wanted, TASKS[name]) if name == "easy_vqa" else wanted)
        if all((folder / f"{name}.yaml").exists() for name in TASKS):
            _put(folder / f"{GROUP}.yaml", described(GROUP, 0))
    except ImportError as error:
        raise InputError(f"tasks={names} need a package that is missing ({error}): {INSTALL}.") from error
    except OSError as error:
        raise InputError(
            f"folder={str(folder)!r} cannot be written ({error.strerror or error}): free some space or name another."
        ) from error
    return folder


def described(name: str, count: int) -> str:
    """The YAML of a task or of the group; it names the version and count, so that the same text means the same data."""
    return (HERE / f"{name}.yaml").read_text().replace("VERSION", str(VERSION)).replace("COUNT", str(count))


def write_clip(frames: Iterable, file: Path) -> None:
    """Frames uint8 [T, height, width, 3] as FFV1 in Matroska: decoding gives the same bytes."""
    import av
    import numpy as np

    with av.open(str(file), "w", format="matroska") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("ffv1", rate=RATE)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "bgr0"  # RGB: a detour through YUV would round
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def named(names: Sequence[str] | None) -> list[str]:
    """Tasks by name, each once; all of them for None and for the group.

    Raises:
        InvalidArgumentError: an unknown name.
    """
    names = list(TASKS) if names is None or GROUP in names else list(dict.fromkeys(names))
    for name in names:
        if name not in TASKS:
            known = [*TASKS, GROUP]
            raise InvalidArgumentError(f"task {name!r} is unknown{nearest(name, known)}: there are {', '.join(known)}.")
    return names


def _build(folder: Path, name: str, count: int) -> None:
    task, data = folder / f"{name}.yaml", folder / f"{name}.parquet"
    text = described(name, count)
    if data.exists() and task.exists() and task.read_text() == text and _clips(folder, name) >= count:
        return
    from datasets import Features, Image, Value
    from rich.console import Console
    from rich.progress import track

    kind = {"video": Value("string")} if name == VIDEO else {"image": Image()}
    features = Features(
        {"id": Value("int64"), **kind, **dict.fromkeys(("question", "answer", "kind"), Value("string"))}
    )
    documents = enumerate(_documents(folder, name, count))
    shown = track(documents, name, total=count, console=Console(stderr=True), transient=True)
    with _at_once(data) as part:
        _write_parquet(part, ({"id": i, **document} for i, document in shown), features)
    _put(task, text)


def _clips(folder: Path, name: str) -> float:
    """How many are there; as many as anyone asks for, where none are needed."""
    return sum(1 for _ in (folder / "clips").glob(f"{VERSION}-*.mkv")) if name == VIDEO else float("inf")


def _documents(folder: Path, name: str, count: int) -> Iterator[dict[str, Any]]:
    from .. import shapes

    if name == VIDEO:
        (folder / "clips").mkdir(exist_ok=True)
        for i, sample in enumerate(shapes.held_out_clips(count)):
            file = folder / "clips" / f"{VERSION}-{i:05}.mkv"
            if not file.exists():
                with _at_once(file) as part:
                    write_clip(sample.frames, part)
            yield {"video": file.name, **_asked(sample.question)}
        return
    samples = shapes.held_out(count) if name == "shapes" else islice(shapes.easy_vqa(), count)
    for sample in samples:
        png = io.BytesIO()
        sample.image.save(png, "PNG")
        yield {"image": {"bytes": png.getvalue(), "path": None}, **_asked(sample.question)}


def _asked(question: Any) -> dict[str, str]:
    return {"question": question.text, "answer": question.answer, "kind": question.kind}


def _write_parquet(file: Path, rows: Iterator[dict], features: Any) -> None:
    """`features`: of `datasets`, which reads them from the file again."""
    import pyarrow
    from pyarrow import parquet

    schema = features.arrow_schema
    with parquet.ParquetWriter(file, schema) as writer:
        while part := list(islice(rows, ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(part, schema=schema))


def _put(file: Path, text: str) -> None:
    if not file.exists() or file.read_text() != text:
        with _at_once(file) as part:
            part.write_text(text)


@contextmanager
def _at_once(file: Path) -> Iterator[Path]:
    """A file beside it that takes its place if nothing goes wrong; its name is another in every process."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)

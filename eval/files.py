"""How accuracy runs keep results: answers as text, JSON with a line for every cell, and what a run goes on from."""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markdown import Markdown


def packed(right: np.ndarray) -> list[str]:
    """Text of [seeds, n] bool: eight answers a byte."""
    return [base64.b64encode(np.packbits(row).tobytes()).decode() for row in right]


def unpacked(texts: list[str], count: int) -> np.ndarray:
    """[seeds, count] bool; `packed` backwards."""
    rows = [np.frombuffer(base64.b64decode(text), dtype=np.uint8) for text in texts]
    return np.stack([np.unpackbits(row, count=count) for row in rows]).astype(bool)


def written(result: dict) -> str:
    """JSON, a line for every cell."""
    facts = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
    rows = ",\n".join("  " + json.dumps(cell) for cell in result["rows"])
    return f'{facts[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def replaced(file: Path, text: str) -> None:
    """Write a file at once, so that a run that is stopped leaves the earlier one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".part").write_text(text)
    file.with_suffix(".part").replace(file)


def indented(result: dict) -> str:
    """JSON, a line for every number."""
    return json.dumps(result, indent=1) + "\n"


def shown(text: str) -> None:
    """Markdown, drawn on a terminal, as it is elsewhere."""
    console = Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text, end="")


def publish(folder: Path, name: str, data: str, text: str) -> None:
    """`name`.json with the data and `name`.md with the text in the folder, and the Markdown on the console."""
    replaced(folder / f"{name}.json", data)
    replaced(folder / f"{name}.md", text)
    shown(text)


def at_least(parser: argparse.ArgumentParser, given: argparse.Namespace, **least: int) -> None:
    """Refuse options below their least values."""
    for name, value in least.items():
        if (asked := getattr(given, name)) is not None and asked < value:
            parser.error(f"--{name} {asked} is below {value}")


def read(file: Path) -> dict | None:
    """An earlier result; None if there is none that can be read."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def reusable(
    earlier: dict | None, result: dict, texts: dict[str, str], budgets: dict[str, tuple[float, ...]]
) -> dict[str, list[dict]]:
    """Row -> cells of an earlier result, where setup, configuration and budgets are those of this one."""
    if earlier is None:
        return {}
    facts = json.loads(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    if {key: value for key, value in earlier.items() if key != "rows"} != facts:
        return {}
    found: dict[str, list[dict]] = {}
    for cell in earlier["rows"]:
        if cell["configuration"] == texts.get(cell["row"]):
            found.setdefault(cell["row"], []).append(cell)
    return {name: cells for name, cells in found.items() if tuple(cell["keep"] for cell in cells) == budgets[name]}

"""What the YAML files call; copied beside them, so it imports nothing of this package."""

from pathlib import Path


def clip(doc: dict) -> list[str]:
    """The file of the document's clip."""
    return [str(Path(__file__).resolve().parent / "clips" / doc["video"])]


def scored(doc: dict, results: list[str]) -> dict[str, float]:
    """1 where the first word answered, without case and punctuation around it, is the answer."""
    word = (results[0].split() or [""])[0]
    return {"accuracy": float(word.lower().strip(".,:;!?\"'") == doc["answer"])}

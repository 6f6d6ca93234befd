"""English text that every Python brings along: the topics of its reference manual (`pydoc_data.topics`)."""

from __future__ import annotations

import hashlib
import re
from importlib import import_module
from typing import Literal

Split = Literal["train", "test"]
TEST = 5  # one topic of so many is for testing


def paragraphs(split: Split, *, least: int = 30) -> list[str]:
    """Paragraphs of prose of at least so many words, without markup, in a fixed order.

    A topic is in one split as a whole, and what topics of both have in common is for testing alone.
    """
    topics = import_module("pydoc_data.topics").topics
    tested = {name for name in topics if int(hashlib.sha256(name.encode()).hexdigest(), 16) % TEST == 0}
    test = dict.fromkeys(text for name in sorted(tested) for text in _prose(topics[name], least))
    if split == "test":
        return list(test)
    train = dict.fromkeys(text for name in sorted(topics.keys() - tested) for text in _prose(topics[name], least))
    return [text for text in train if text not in test]


def _prose(topic: str, least: int) -> list[str]:
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", topic))
    plain = (re.sub(r"[*`\"]|\[\d+\]", "", text) for text in blocks if not re.search(r">>>|::", text))
    return [text for text in plain if text[:1].isalpha() and text.endswith(".") and len(text.split()) >= least]

"""Docstrings as Markdown: paragraphs, formulas with their indices, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

GREEK = dict(
    zip(("alpha", "beta", "gamma", "delta", "theta", "kappa", "lambda", "mu", "rho", "tau"), "αβγδθκλμρτ", strict=True)
)
SIGNS = {"<=": "≤", ">=": "≥", "->": "→", "<-": "←", " * ": " · "}
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|-])")
INDEX = r"(?:[A-Za-z0-9]+|\([^()]*\)[a-z]?)"
SYMBOL = re.compile(
    rf"(?<![\w`])([A-Za-z]'?|[A-Z]\d[A-Z]|{'|'.join(GREEK)}|argmax|argmin|max|min)((?:[_^]{INDEX})+)(?!\w)"
)


def escaped(text: str) -> str:
    """Text that Markdown is to show as it is."""
    return SPECIAL.sub(r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def prose(text: str, fields: Iterable[str] = (), links: dict[str, str] | None = None) -> str:
    """A sentence of a docstring in Markdown, in one line.

    Args:
        fields: names set as code wherever they stand.
        links: `name` in backticks -> page it leads to.
    """
    pieces = re.split(r"(`[^`]+`)", re.sub(r"\s+", " ", text))
    return "".join(_code(one, links or {}) if one[:1] == "`" else _plain(one, set(fields)) for one in pieces)


def _code(piece: str, links: dict[str, str]) -> str:
    target = links.get(piece.strip("`"))
    return f"[{piece}]({target})" if target else piece.replace("|", "\\|")


def _plain(text: str, fields: set[str]) -> str:
    words = sorted(map(re.escape, fields), key=len, reverse=True)
    named = re.compile(rf"(?<![\w-])({'|'.join(words)})(?![\w-])") if words else None
    parts = named.split(text) if named else [text]
    return "".join(f"`{part}`" if at % 2 else _typeset(part) for at, part in enumerate(parts))


def _typeset(text: str) -> str:
    done, at = [], 0
    for found in SYMBOL.finditer(text):
        done += [_signs(text[at : found.start()]), _symbol(found[1], found[2])]
        at = found.end()
    return _linked("".join([*done, _signs(text[at:])]))


def _symbol(base: str, marks: str) -> str:
    written = base if base in ("max", "min", "argmax", "argmin") else f"<i>{GREEK.get(base, base)}</i>"
    for kind, index in re.findall(rf"([_^])({INDEX})", marks):
        tag = "sub" if kind == "_" else "sup"
        written += f"<{tag}>{_signs(index.strip('()') if index[-1:] == ')' else index)}</{tag}>"
    return written


def _signs(text: str) -> str:
    text = re.sub(rf"\b({'|'.join(GREEK)})\b", lambda found: GREEK[found[1]], text)
    text = re.sub(r"\bsqrt(?=\()", "√", text)
    for plain, sign in SIGNS.items():
        text = text.replace(plain, sign)
    text = re.sub(r"\^(\w+|\([^()]*\))", lambda found: f"\0{found[1].strip('()')}\1", text)
    return escaped(text).replace("\0", "<sup>").replace("\1", "</sup>")


def _linked(text: str) -> str:
    return re.sub(r"(arXiv )(\d{4}\.\d{5})", r"\1[\2](https://arxiv.org/abs/\2)", text)


def paragraph(text: str, fields: Iterable[str] = (), links: dict[str, str] | None = None) -> str:
    """A paragraph of a docstring: lines that are indented stay what they are, as code."""
    lines = text.splitlines()
    if all(line.startswith("    ") for line in lines):
        return "\n".join(["```{ .python .fragment }", *(line[4:] for line in lines), "```"])
    return prose(text, fields, links)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A table in Markdown; with `numbers`, all columns but the first are aligned right."""
    side = "---:" if numbers else "---"
    lines = [head, ["---", *[side] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

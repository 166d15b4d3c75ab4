"""Formatting of generated Python: long lines, docstrings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

WIDTH = 120


def docstring(text: str, indent: str = "") -> str:
    """A triple-quoted string whose content cannot end it; control characters are escaped."""
    # A quote at the end would be one of the three that end the string.
    text, last = (text[:-1], '\\"') if text.endswith('"') else (text, "")
    safe = "".join(
        ch if ch.isprintable() or ch == "\n" else ch.encode("unicode_escape").decode()
        for ch in text.replace("\\", "\\\\")
    )
    safe = safe.replace('"""', '\\"\\"\\"') + last
    lines = safe.split("\n")
    body = "\n".join([lines[0], *(f"{indent}{line}".rstrip() for line in lines[1:])])
    return f'"""{body}\n{indent}"""' if len(lines) > 1 else f'"""{body}"""'


def quoted(text: str) -> str:
    """A string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\x7f")


def several(items: Iterable[str]) -> str:
    """A tuple of items, as code."""
    items = list(items)
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def wrap(lines: Iterable[str], indent: int = 0) -> list[str]:
    """Break what does not fit, as a formatter would; `indent` is what the lines will be moved to the right by."""
    out: list[str] = []
    for line in lines:
        out.extend(_wrap(line, WIDTH - indent))
    return out


def _wrap(line: str, width: int) -> list[str]:
    if len(line) <= width or line.lstrip().startswith("#"):
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    at = _outer_bracket(line)
    if at is None:
        return [line]
    start, end = at
    terms = _terms(line)
    if len(terms) > 1:
        head, first = terms[0].split(" = ", 1) if " = " in terms[0] else ("", terms[0].strip())
        comma = "," if line.endswith(",") else ""
        parts = [first, *(t.rstrip(",") for t in terms[1:])]
        if not head:
            # Within brackets already.
            return [
                w
                for i, t in enumerate(parts)
                for w in _wrap(f"{indent}{t}{comma if i == len(parts) - 1 else ''}", width)
            ]
        whole = f"{indent}    {' '.join(parts)}"
        body = [whole] if len(whole) <= width else [w for t in parts for w in _wrap(f"{indent}    {t}", width)]
        return [f"{indent}{head.strip()} = (", *body, f"{indent}){comma}"]
    items = _items(line[start + 1 : end])
    head, tail = line[: start + 1], line[end:]
    inner = f"{indent}    {', '.join(items)}"
    # One parenthesised value must not become a tuple, and a tuple goes one item a line.
    call = start > 0 and (line[start - 1].isalnum() or line[start - 1] in "_)]")
    if len(inner) <= width and len(items) > 1 and call:
        return [head, inner, f"{indent}{tail}"]
    kept = line[start + 1 : end].rstrip().endswith(",")
    comma = "," if len(items) > 1 or call or kept or line[start] == "[" else ""
    body = [part for item in items for part in _wrap(f"{indent}    {item}{comma}", width)]
    return [head, *body, f"{indent}{tail}"]


def _open(text: str) -> Iterator[tuple[int, str]]:
    """The characters that stand in no bracket and no string, with their places."""
    depth, quote = 0, ""
    for i, ch in enumerate(text):
        if quote:
            quote = "" if ch == quote else quote
        elif ch in "\"'":
            quote = ch
        elif ch in "([{":
            depth += 1
        elif ch in ")]}":
            depth -= 1
        elif depth == 0:
            yield i, ch


def _terms(line: str) -> list[str]:
    """A line cut before each `+` and `-` between two operands."""
    start = 0
    parts: list[str] = []
    for i, ch in _open(line):
        if ch in "+-" and line[start:i].strip() and line[i - 1] + line[i + 1 : i + 2] == "  ":
            parts.append(line[start:i].rstrip())
            start = i
    return [*parts, line[start:]]


def _outer_bracket(line: str) -> tuple[int, int] | None:
    """The outermost bracket that ends the line (a comma or a colon may follow it)."""
    stack: list[int] = []
    quote = ""
    best: tuple[int, int] | None = None
    for i, ch in enumerate(line):
        if quote:
            quote = "" if ch == quote else quote
        elif ch in "\"'":
            quote = ch
        elif ch in "([{":
            stack.append(i)
        elif ch in ")]}" and stack:
            start = stack.pop()
            if not stack and i - start > 1:
                best = (start, i) if best is None or i - start > best[1] - best[0] else best
    return best


def _items(text: str) -> list[str]:
    """The items of a list, as they stand between its commas."""
    start = 0
    parts: list[str] = []
    for i, ch in _open(text):
        if ch == ",":
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts

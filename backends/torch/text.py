"""Formatting of generated Python: long lines, docstrings."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator

WIDTH = 120
_TARGETS = re.compile(r"(?P<targets>(?:\w+, )+\w+) = [\w.]+\(")
_HEAD = re.compile(r"return |(?:[^\s()\[\]{}\"'=]+(?:, | ))+[+*/-]?= |\w+=")
_LEVELS = (("or", "and"), ("==", "!=", "<", "<=", ">", ">="), ("|",), ("&",), ("+", "-"), ("*", "/", "//", "%", "@"))
_OPERATOR = re.compile(r"(or|and|[=!<>]=|[<>|&+\-*/%@]|//) ")


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


def cut(text: str, width: int = 100) -> str:
    """One line of a text, for a comment."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def together(names: Iterable[str]) -> str:
    """A part of an identifier for several states: all of their names, where that is short enough to read."""
    first, *more = names
    joined = "_".join([first, *more])
    return joined if len(joined) <= 60 or not more else f"{first}_and_{len(more)}_more"


def spelled(name: str) -> str:
    """A name in ASCII, as that of a function of Triton must be: Greek letters are spelled out."""
    return "".join(c if c.isascii() else _letter(c) for c in name)


def _letter(c: str) -> str:
    found = re.fullmatch(r"GREEK (?:SMALL|(CAPITAL)) LETTER (\w+)", unicodedata.name(c, ""))
    if found is None:
        return f"u{ord(c):x}"
    return found.group(2).capitalize() if found.group(1) else found.group(2).lower()


def constant(value: int | float) -> str:
    """A number as Python has it."""
    if value == float("inf"):
        return "math.inf"
    return "-math.inf" if value == -float("inf") else repr(value)


def decimal(text: str) -> str:
    """Code of a number, as a float where it is a whole one."""
    return f"{text}.0" if text.isdigit() else text


def several(items: Iterable[str]) -> str:
    """A tuple of items, as code."""
    items = list(items)
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def mapping(items: Iterable[tuple[str, str]]) -> str:
    """A dict from names to items, as code."""
    return f"{{{', '.join(f'{quoted(name)}: {value}' for name, value in items)}}}"


def wrap(lines: Iterable[str], indent: int = 0) -> list[str]:
    """Break what does not fit, as ruff would; `indent` is what the lines will be moved to the right by."""
    out: list[str] = []
    for line in lines:
        text = line.lstrip()
        if len(line) <= WIDTH - indent or text.startswith("#"):
            out.append(line)
        else:
            out.extend(_statement(line[: len(line) - len(text)], text, WIDTH - indent))
    return out


def _statement(indent: str, text: str, width: int) -> list[str]:
    found = _TARGETS.match(text)
    if found and len(indent + found.group()) + 1 > width:
        # The targets of a call that do not fit on one line with its name.
        each = _each(indent, found.group("targets").split(", "), width)
        rest = f"{indent}) = {text[found.end('targets') + 3 :]}"
        return [f"{indent}(", *each, *([rest] if len(rest) <= width else _hugged(indent, rest.lstrip(), "", width))]
    comma = "," if text.endswith(",") else ""
    text = text.removesuffix(",")
    head = _HEAD.match(text)
    before = head.group() if head else ""
    value = text[len(before) :]
    items, operands = _items(value), _operands(value)
    if before and len(items) > 1:
        return [f"{indent}{before}(", *_each(indent, items, width), f"{indent}){comma}"]
    if len(operands) > 1 and not before:
        # Within brackets already.
        return _lined_up(indent, operands, comma, width)
    hugged = _hugged(indent, text, comma, width)
    # One operator does not part from its operands where the last of them has a bracket to break in.
    if len(operands) == 1 or (len(operands) == 2 and text[-1] in ")]" and all(len(h) <= width for h in hugged)):
        return hugged
    inside = f"{indent}    "
    body = [inside + value] if len(inside + value) <= width else _lined_up(inside, operands, "", width)
    return [f"{indent}{before}(", *body, f"{indent}){comma}"]


def _lined_up(indent: str, operands: list[str], comma: str, width: int) -> list[str]:
    """One operand a line, each after its operator."""
    out: list[str] = []
    for i, operand in enumerate(operands):
        line = indent + operand + (comma if i == len(operands) - 1 else "")
        if len(line) <= width:
            out.append(line)
        elif i == 0 and len(inner := _operands(operand)) > 1:
            out.extend(_lined_up(indent, inner, "", width))
        else:
            out.extend(_hugged(indent, operand, line[len(indent + operand) :], width))
    return out


def _each(indent: str, items: list[str], width: int) -> list[str]:
    """One item a line."""
    return [w for item in items for w in wrap([f"{indent}    {item},"], WIDTH - width)]


def _hugged(indent: str, text: str, after: str, width: int) -> list[str]:
    """Break in the first bracket that does not fit together with what follows it up to the next, then go on."""
    start = len(indent)
    line = indent + text + after
    groups = _brackets(line)
    for i, (opened, closed) in enumerate(groups):
        end = groups[i + 1][0] + 1 if i + 1 < len(groups) and not text.startswith("def ") else len(line)
        if end <= width:
            continue
        items = _items(line[opened + 1 : closed])
        call = opened > start and (line[opened - 1].isalnum() or line[opened - 1] in "_)]")
        inner = f"{indent}    {', '.join(items)}"
        tuple_of_one = not call and line[closed - 1] == "," and line[opened] == "("
        if len(inner) <= width and (call or (len(items) == 1 and not tuple_of_one and line[opened] == "(")):
            body = [inner]
        elif len(items) > 1 or call or tuple_of_one or line[opened] != "(":
            body = _each(indent, items, width)
        else:
            body = wrap([inner], WIDTH - width)
        rest = line[closed:]
        last = [indent + rest] if len(indent + rest) <= width else _hugged(indent, rest, "", width)
        return [line[: opened + 1], *body, *last]
    return [line]


def _open(text: str) -> Iterator[tuple[int, str]]:
    """The characters that stand in no bracket and no string, with their places; the outermost brackets too."""
    depth, quote = 0, ""
    for i, ch in enumerate(text):
        if quote:
            quote = "" if ch == quote else quote
        elif ch in "\"'":
            quote = ch
        elif ch in "([{":
            if depth == 0:
                yield i, ch
            depth += 1
        elif ch in ")]}":
            depth = max(depth - 1, 0)
            if depth == 0:
                yield i, ch
        elif depth == 0:
            yield i, ch


def _operands(text: str) -> list[str]:
    """An expression cut before its operators that bind least and stand in no bracket."""
    places = [(i, level) for i, ch in _open(text) if ch == " " and (level := _level(text[i + 1 :])) is not None]
    least = min((level for _, level in places), default=0)
    cuts = [i for i, level in places if level == least]
    return [text[a:b].strip() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _level(text: str) -> int | None:
    """How strongly the operator binds that a text begins with."""
    found = _OPERATOR.match(text)
    return next(i for i, ops in enumerate(_LEVELS) if found.group(1) in ops) if found else None


def _brackets(line: str) -> list[tuple[int, int]]:
    """The outermost brackets with something in them."""
    ends = [i for i, ch in _open(line) if ch in ")]}"]
    starts = [i for i, ch in _open(line) if ch in "([{"]
    # Text that begins with the end of a bracket has one more of them; one that opens the next lines' has one fewer.
    starts = starts[: len(ends)]
    return [(a, b) for a, b in zip(starts, ends[len(ends) - len(starts) :], strict=True) if b - a > 1]


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

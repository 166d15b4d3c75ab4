"""What a generated kernel says of itself: its equations, what a program does, what its parameters point to."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from rnnc.closure import Block, Moebius, Tropical, Variable

from ..torch.text import docstring
from .adjoint import BackwardCoder
from .frame import Leaf
from .maps import Composition


def documented(text: str, backward: BackwardCoder) -> str:
    """One kernel with its docstring in place of the word for what it does."""
    found = re.search(r'    """(\w+)"""\n', text)
    assert found is not None
    parts = [_purpose(found.group(1), backward), _walk(found.group(1), backward), _memory(text, backward)]
    made = docstring("\n\n".join(p for p in parts if p), "    ")
    return text[: found.start()] + "    " + made + "\n" + text[found.end() :]


def _filled(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 112))


def _purpose(what: str, backward: BackwardCoder) -> str:
    equations = "\n".join(filter(None, backward.coder.equations))
    match what:
        case "forward":
            return equations
        case "backward":
            return f"Gradients, from the last token to the first, of\n\n{textwrap.indent(equations, '    ')}"
        case "carry":
            told = "What a segment of the sequence does to the state that enters it"
            return _filled(f"{told}: {form(backward.coder.composition)}.")
        case _:
            told = "What a segment does to the gradient that comes from the tokens after it"
            return _filled(f"{told}: {form(backward.composition)}.")


def form(composition: Composition | None) -> str:
    """The maps that are composed, in a formula."""
    assert composition is not None
    forms: dict[str, None] = {}
    for m in composition.maps:
        match m.closure:
            case Block(components=(_,)):
                forms["`s -> a * s + b`"] = None
            case Block(components=components):
                forms[f"`s -> a s + b` with a matrix of {len(components)} x {len(components)}"] = None
            case Tropical(roles=roles):
                moved = ("a * s" if "a" in roles else "s") + (" + b" if "b" in roles else "")
                moved = f"max({moved}, c)" if "c" in roles else moved
                forms[f"`s -> {f'min({moved}, d)' if 'd' in roles else moved}`"] = None
            case Moebius():
                forms["`s -> (a * s + b) / (c * s + d)`"] = None
            case Variable(logarithmic=True):
                forms["`s -> logaddexp(s + a, b)`"] = None
            case Variable(phi=phi):
                forms[f"`{phi.text}(s) -> a * {phi.text}(s) + b`"] = None
            case other:
                forms[other.family] = None
    return " and ".join(forms)


def _walk(what: str, backward: BackwardCoder) -> str:
    """How a program goes through its tokens."""
    coder = backward.coder
    back = what in ("backward", "carry_back")
    segments = coder.kernel.scan_back if back else coder.kernel.scan
    inner = f", and all of {' and '.join(coder.kernel.inner)}" if coder.kernel.inner else ""
    text = f"A program has {'one segment of ' if segments else ''}one sequence, BC channels{inner}."
    if backward.tiled if back else coder.tiled:
        text += " It takes tiles of tokens, [BT, BS, BC]: BS stretches of BT tokens, each stretch in one thread."
    else:
        shape = "[BN, BC]" if coder.kernel.inner else "[BC]"
        text += f" It takes one token after the other, its state {shape} in registers."
        if what == "forward" and not coder.stored:
            text += " The state that enters each CHUNK tokens is kept for the backward."
        if back and not coder.stored:
            text += " The states of each CHUNK tokens are computed again first, into scratch memory."
    if segments and what == "forward":
        text += " If there are several segments, it first applies those before its own."
    if segments and what == "backward":
        text += " If there are several segments, it first applies those after its own."
    return _filled(text)


def _memory(text: str, backward: BackwardCoder) -> str:
    """The shapes of what the parameters point to."""
    shapes = _shapes(backward)
    given = [p for p in re.findall(r"^    (\w+_ptr),$", text, re.MULTILINE) if p in shapes]
    written = set(re.findall(r"tl\.store\(\s*(\w+_ptr)\b", text))
    lines: list[str] = []
    for title, stored in (("Reads", False), ("Writes", True)):
        groups: dict[str, list[str]] = {}
        for name in given:
            if (name in written) == stored:
                groups.setdefault(shapes[name], []).append(name.removesuffix("_ptr"))
        items = [f"{', '.join(group)} {shape}" for shape, group in groups.items()]
        if items:
            lines += textwrap.wrap(f"{title}: {'; '.join(items)}.", 112, subsequent_indent="    ")
    if backward.coder.tokens:
        lines += textwrap.wrap("Tokens of an input `x` are `x_row` numbers apart.", 112)
    return "\n".join(lines)


def _shapes(backward: BackwardCoder) -> dict[str, str]:
    coder = backward.coder

    def shape(first: str, dims: Iterable[str], kind: str) -> str:
        sizes = ["BLOCKS" if d == "*" else coder.sizes[d] for d in dims]
        return f"[{', '.join([*filter(None, [first]), *sizes, *(['2'] if kind == 'complex' else [])])}]"

    found: dict[str, str] = {}

    def leaf(x: Leaf) -> None:
        found[f"{x.name}_ptr"] = shape("tokens" if x.token else "", x.node.dims, x.node.kind)
        found[f"d_{x.name}_ptr"] = shape("tokens" if x.token else "programs", coder.slot(x), x.node.kind)

    for x in (*coder.tokens, *coder.fixed):
        leaf(x)
    for name, result in zip(coder.result_names, coder.kernel.results, strict=True):
        found[f"{name}_ptr"] = found[f"d_{name}_ptr"] = shape("tokens", result.dims, result.kind)
    for name, stream in zip(coder.state_names, coder.streams, strict=True):
        for pattern, first in (
            *((p, "tokens") for p in ("{}_ptr", "d_{}_ptr")),
            *((p, "sequences") for p in ("{}_initial_ptr", "{}_last_ptr", "d_{}_initial_ptr", "d_{}_last_ptr")),
            *((f"{d}{{}}_{p}_ptr", "segments, sequences") for d in ("", "d_") for p in ("entered", "arrived", "size")),
            ("{}_starts_ptr", "chunks"),
        ):
            found[pattern.format(name)] = shape(first, coder.dims, stream.type.kind)
    for composition in (coder.composition, backward.composition):
        for m in composition.maps if composition else ():
            found.update((f"{n}_ptr", shape("segments, sequences", coder.dims, m.kind)) for n in m.names)
    return found

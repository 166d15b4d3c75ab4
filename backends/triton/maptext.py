"""The functions that compose a tile's tokens by a family's maps, where these are more than `a * s + b`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

import jinja2

from rnnc.ir import Expr, Graph, Lit, Ref, Type

from ..torch.block import NameTable
from ..torch.text import wrap
from .maps import Composition, labels
from .tile import Tile, Tiles, literal


def map_text(composition: Composition, told: str) -> str:
    """The text of the functions of one direction that its kernels call."""
    (m,) = composition.maps
    name = composition.own_name
    graph, kind = composition.graph, m.kind
    short = labels(m.closure)
    states = [f"s{i}" for i in range(1, len(m.at) + 1)] if len(m.at) > 1 else ["s"]

    def parts(names: Sequence[str], suffix: str = "") -> list[str]:
        ends = ("_re", "_im") if kind == "complex" else ("",)
        return [f"{n}{suffix}{end}" for n in names for end in ends]

    def written(refs: Sequence[Ref], exprs: Sequence[Expr]) -> tuple[list[str], list[str]]:
        return _written(graph, [(r, r.name) for r in refs], exprs, composition)

    def named(names: Sequence[str], suffix: str = "") -> tuple[Ref, ...]:
        return tuple(graph.ref("input", f"{n}{suffix}", Type((), kind)) for n in names)

    earlier, later, one, past = named(short, "_1"), named(short, "_2"), named(short), named(states)
    compose, composed = written([*earlier, *later], m.closure.compose(graph, later, earlier))
    apply, applied = written([*one, *past], m.closure.apply(graph, one, past))
    identity = [x for e in m.closure.identity(graph) for x in _numbers(e, kind)]
    before = parts(short, "_before")
    composition.coder.functions |= {"_tl_last"}
    view = {
        "name": name,
        "told": told,
        "used": composition.used,
        "parameters": parts(short),
        "earlier": parts(short, "_1"),
        "later": parts(short, "_2"),
        # What came before the earlier token does not matter, but a scan gives it.
        "before_earlier": [f"_{p}" for p in parts(short, "_before_1")],
        "before_later": parts(short, "_before_2"),
        "before": before,
        "compose": compose,
        "composed": composed,
        "identity": list(zip(before, identity, strict=True)),
        "nothing": ["_"] * len(before),
        "lasts": [f"_tl_last({p})" for p in parts(short)],
        "states": parts(states),
        "states_row": [f"{s}[None, :]" for s in parts(states)],
        "apply": apply,
        "applied": applied,
        "all": parts(short, "_all"),
        "before_all": parts(short, "_before_all"),
        "entering": parts(states, "_entering"),
        "entering_tile": [f"{s}[None, :, :]" for s in parts(states, "_entering")],
        "after": parts(states, "_after"),
        "earlier_states": parts(states, "_earlier"),
        "last": parts(states, "_last"),
        "last_entries": [f"_tl_last({s})" for s in parts(states, "_last")],
    }
    return "\n".join(wrap(_template().render(m=view).strip("\n").split("\n")))


def _written(
    graph: Graph, names: Sequence[tuple[Ref, str]], exprs: Sequence[Expr], composition: Composition
) -> tuple[list[str], list[str]]:
    """Lines that compute expressions of named values whatever their shape, and the results."""
    taken = {part for _, n in names for part in (n, f"{n}_re", f"{n}_im")}
    tiles = Tiles(NameTable(frozenset(taken)), {}, _literal, "1")
    tiles.functions = composition.coder.functions
    kind = composition.maps[0].kind
    for ref, name in names:
        tiles.values[ref] = Tile((f"{name}_re", f"{name}_im") if kind == "complex" else (name,))
    dtype = f"{tiles.values[names[0][0]].parts[0]}.dtype"
    tiles.expect(*exprs)
    results: list[str] = []
    for e in exprs:
        found = tiles.pair(e, "", 0) if kind == "complex" else tiles.aligned(e, "", 0)
        if isinstance(e, Lit):
            like = tiles.values[names[0][0]].parts[0]
            found = tuple(f"tl.full({like}.shape, {p}, DTYPE)" for p in found)
        results += found
    return [x.replace("DTYPE", dtype) for x in tiles.lines], [x.replace("DTYPE", dtype) for x in results]


def _literal(node: Expr) -> tuple[str, ...]:
    assert isinstance(node, Lit)
    return literal(node.value)


def _numbers(node: Expr, kind: str) -> tuple[str, ...]:
    found = _literal(node)
    return found if kind != "complex" or len(found) == 2 else (*found, "0.0")


@cache
def _template() -> jinja2.Template:
    text = (resources.files("rnnc.templates") / "triton" / "maps.py.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(text)

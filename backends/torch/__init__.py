"""Plans → one Python module with plain PyTorch, for any device. Imports neither torch nor triton."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

import jinja2

import rnnc
from rnnc.plan import Plan

from .cell import CellCode, CellCoder
from .text import docstring, wrap


def emit(plans: Sequence[Plan], text: str) -> str:
    """The generated module of all cells of one source: the same bytes for the same source."""
    runtime = _runtime()
    cells: list[CellCode] = []
    for plan in plans:
        taken = frozenset(runtime) | frozenset(p.system.cell.name for p in plans)
        cells.append(CellCoder(plan, taken, sum(len(c.loops) for c in cells)).code())
    digest = hashlib.sha256(text.encode()).hexdigest()
    scans = any(c.scans for c in cells)
    loops = sum(len(c.loops) for c in cells)
    wanted = {h for c in cells for h in c.helpers}
    if scans or loops:
        wanted.add("_free_namespace")
    body = _template().render(
        runtime="\n\n\n".join(_closure(wanted, runtime)),
        namespace=f"rnnc_{digest[:12]}",
        operators="scan" if scans else "loop_0" if loops else "",
        scans=scans,
        cells=[_view(c) for c in cells],
    )
    head = docstring(_head([c.name for c in cells], text, digest))
    return f"{head}\n\nfrom __future__ import annotations\n\n{_imports(body)}\n\n{body}"


def _view(cell: CellCode) -> dict[str, object]:
    """What the template needs of a cell besides its parts."""
    inputs = cell.inputs
    return {
        **vars(cell),
        "locals": ", ".join(f"{n}: Tensor" for n in cell.input_names),
        "typed": ", ".join(f"{n}: Tensor" for n in inputs),
        "tuple": ", ".join(inputs) + ("," if len(inputs) == 1 else ""),
        "result": "Tensor" if len(cell.outputs) == 1 else f"{cell.name}Output",
    }


def _head(names: list[str], text: str, digest: str) -> str:
    return "\n".join(
        [
            f"{', '.join(names)}, compiled by rnnc {rnnc.__version__} from the recurrence below.",
            "",
            f"Its source has the sha256 {digest}.",
            "This file needs torch alone and is yours: edit it, ship it, license it as you like.",
            "",
            *(f"    {line}" for line in text.rstrip().split("\n")),
        ]
    )


def _wrapped(code: str) -> str:
    return "\n".join(wrap(code.split("\n")))


@cache
def _template() -> jinja2.Template:
    text = (resources.files("rnnc.templates") / "torch" / "module.py.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["wrapped"] = _wrapped  # pyright: ignore[reportUnknownMemberType]
    return environment.from_string(text)


_RUNTIME = ("numbers", "values", "time", "scan", "loop", "module")
"""The files of `templates/torch/` that generated modules take definitions from, in this order."""


@cache
def _runtime() -> dict[str, str]:
    """The definitions of the runtime by name, in order."""
    out: dict[str, str] = {}
    for name in _RUNTIME:
        text = (resources.files("rnnc.templates") / "torch" / f"{name}.py").read_text(encoding="utf-8")
        lines = text.split("\n")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                out[node.name] = "\n".join(lines[start - 1 : node.end_lineno])
    return out


@cache
def _needs(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"\b_\w+", _runtime()[name])) & frozenset(_runtime())


def _closure(wanted: Iterable[str], runtime: dict[str, str]) -> list[str]:
    """The wanted definitions and all that they use, in the runtime's order."""
    found: set[str] = set()
    stack = list(wanted)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(_needs(name))
    return [code for name, code in runtime.items() if name in found]


def _imports(code: str) -> str:
    """The import statements that the code uses."""
    plain = [f"import {m}" for m in ("cmath", "itertools", "math") if re.search(rf"\b{m}\.", code)]
    callables = [n for n in ("Callable", "Sequence") if re.search(rf"\b{n}\b", code)]
    if callables:
        plain.append(f"from collections.abc import {', '.join(callables)}")
    typing = [n for n in ("Any", "NamedTuple") if re.search(rf"\b{n}\b", code)]
    plain.append(f"from typing import {', '.join(typing)}")
    functional = ["import torch.nn.functional as F"] if re.search(r"\bF\.", code) else []
    return "\n".join([*plain, "", "import torch", *functional, "from torch import Tensor, nn", ""])

"""Plans → one Python module with plain PyTorch, for any device. Imports neither torch nor triton."""

from __future__ import annotations

import ast
import hashlib
import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib import resources

import jinja2

import rnnc
from rnnc.plan import Plan

from .cell import CellCode, CellCoder
from .text import docstring, wrap


def emit(plans: Sequence[Plan], text: str) -> str:
    """The generated module of all cells of one source: the same bytes for the same source."""
    return module(plans, text, CellCoder, RUNTIME)


def module(plans: Sequence[Plan], text: str, coder: type[CellCoder], runtime_files: tuple[str, ...]) -> str:
    """The module that a coder makes, with the definitions of the runtime that its cells use."""
    runtime = _runtime(runtime_files)
    cells: list[CellCode] = []
    for plan in plans:
        taken = frozenset(runtime) | frozenset(p.system.cell.name for p in plans)
        cells.append(coder(plan, taken, sum(len(c.operators) for c in cells)).code())
    digest = hashlib.sha256(text.encode()).hexdigest()
    scans = any(c.scans for c in cells)
    shared = ["scan"] * scans + ["low_rank"] * any(c.ranks for c in cells)
    operators = next(iter([*shared, *(o for c in cells for o in c.operators)]), "")
    wanted = {h for c in cells for h in c.helpers}
    if operators:
        wanted.add("_free_namespace")
    definitions = _closure(wanted, runtime)
    shared_code = "\n\n\n".join(definitions)
    body = _template().render(
        runtime=shared_code,
        namespace=f"rnnc_{digest[:12]}",
        operators=operators,
        scans=scans,
        chunks=any(c.chunks for c in cells),
        ranks=any(c.ranks for c in cells),
        cells=[_view(c) for c in cells],
    )
    tools = ["triton"] if any(c.parts for c in cells) else []
    tools += ["cuda-core"] if any(loop.kernels for c in cells for loop in c.loops) else []
    needs = f"torch, and {' and '.join(tools)} for its kernels on a GPU," if tools else "torch alone"
    head = docstring(_head([c.name for c in cells], text, digest, needs, "_native" in wanted))
    imports = _imports([*definitions, body.removeprefix(shared_code)])
    return f"{head}\n\nfrom __future__ import annotations\n\n{imports}\n\n{body}"


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


def _head(names: list[str], text: str, digest: str, needs: str, native: bool) -> str:
    loops = ["Where a C compiler is found, `cc` or $CC, its loops over tokens run in C on a CPU."] if native else []
    return "\n".join(
        [
            f"{', '.join(names)}, compiled by rnnc {rnnc.__version__} from the recurrence below.",
            "",
            f"Its source has the sha256 {digest}.",
            *textwrap.wrap(f"This file needs {needs} and is yours: edit it, ship it, license it as you like.", 118),
            *loops,
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


RUNTIME = tuple(
    f"torch/{name}.py"
    for name in (
        "numbers",
        "values",
        "time",
        "operator",
        "scan",
        "loop",
        "compiled",
        "composed",
        "chunks",
        "scores",
        "lowrank",
        "module",
    )
)
"""The files of `templates/` that generated modules take definitions from, in this order."""


@cache
def _runtime(files: tuple[str, ...]) -> dict[str, str]:
    """The definitions of the runtime by name, in order."""
    out: dict[str, str] = {}
    for name in files:
        folder, file = name.split("/")
        text = (resources.files("rnnc.templates") / folder / file).read_text(encoding="utf-8")
        lines = text.split("\n")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in out, f"two definitions of {node.name} in the runtime"
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                out[node.name] = "\n".join(lines[start - 1 : node.end_lineno])
    return out


def _needs(code: str, runtime: dict[str, str]) -> frozenset[str]:
    return frozenset(re.findall(r"\b_\w+", code)) & frozenset(runtime)


def _closure(wanted: Iterable[str], runtime: dict[str, str]) -> list[str]:
    """The wanted definitions and all that they use, in the runtime's order."""
    found: set[str] = set()
    stack = list(wanted)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(_needs(runtime[name], runtime))
    return [code for name, code in runtime.items() if name in found]


_MODULES = (
    *("cmath", "contextlib", "ctypes", "functools", "hashlib", "importlib", "itertools", "math", "os"),
    *("shlex", "shutil", "subprocess", "tempfile", "threading", "warnings"),
)


@lru_cache(1024)
def _names(code: str) -> frozenset[str]:
    """The names that code uses. Definitions of the runtime come again with every module."""
    return frozenset(node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name))


def _imports(parts: Iterable[str]) -> str:
    """The import statements that parts of a module use."""
    used = frozenset[str]().union(*map(_names, parts))

    def of(module: str, *names: str) -> list[str]:
        found = [n for n in names if n in used]
        return [f"from {module} import {', '.join(found)}"] if found else []

    plain = [f"import {m}" for m in _MODULES if m in used]
    plain += of("collections.abc", "Callable", "Iterable", "Sequence")
    kernels = "triton" in used
    plain += [*(["from types import SimpleNamespace"] if kernels else []), *of("typing", "Any", "NamedTuple")]
    functional = ["import torch.nn.functional as F"] if "F" in used else []
    lines = [*plain, "", "import torch", *functional, "from torch import Tensor, nn", ""]
    return "\n".join([*lines, *(_TRITON if kernels else [])])


_TRITON = """\
try:
    import triton
    import triton.language as tl
except ImportError:
    # The kernels below stay plain functions that nothing calls.
    triton, tl = SimpleNamespace(jit=lambda function=None, **_: function or (lambda kernel: kernel)), None
""".split("\n")

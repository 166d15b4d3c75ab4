"""Kernels do not read what they wrote, where threads do not wait for each other in between.

A program's threads share no order of writes and reads of the chip's memory, and Triton adds none: its interpreter,
which has one thread, cannot show that. So it is read off the text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.cells import EXAMPLES
from tests.modules import generate

STEMS = ("mamba", "gla", "retnet", "kda", "gateddeltanet", "kalman", "linoss", "mlstm")
BARRIER = "tl.debug_barrier()"


def kernels(text: str) -> Iterator[ast.FunctionDef]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            yield node


def pointers(kernel: ast.FunctionDef, call: str) -> set[str]:
    """The parameters that a kernel's loads, or its stores, are of. Launches that repair read what others wrote, and
    have no segments of their own."""
    found: set[str] = set()
    assigned = {
        target.id: node.value
        for node in ast.walk(kernel)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    stack: list[ast.AST] = [kernel]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "REPAIR":
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) == call:
            names, seen = [n for n in ast.walk(node.args[0]) if isinstance(n, ast.Name)], set[str]()
            while names:
                name = names.pop().id
                if name.endswith("_ptr"):
                    found.add(name)
                elif name in assigned and name not in seen and call not in ast.unparse(assigned[name]):
                    seen.add(name)
                    names += [n for n in ast.walk(assigned[name]) if isinstance(n, ast.Name)]
        stack.extend(ast.iter_child_nodes(node))
    return found


def hazards(text: str) -> set[str]:
    """The kernels of a module that read what they wrote without a barrier."""
    return {
        k.name
        for k in kernels(text)
        if pointers(k, "tl.load") & pointers(k, "tl.store") and BARRIER not in ast.unparse(k)
    }


@pytest.mark.parametrize("stem", STEMS)
def test_no_kernel_reads_what_it_wrote(stem: str) -> None:
    text = generate((EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8"))
    assert any(pointers(k, "tl.load") for k in kernels(text))
    assert not hazards(text)


def test_a_barrier_is_missed() -> None:
    text = generate((EXAMPLES / "mamba.rnn").read_text(encoding="utf-8"))
    assert hazards(text.replace(BARRIER, "pass")) == {"_Mamba_S_backward"}

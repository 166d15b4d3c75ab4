"""Kernels do not read what they wrote, where threads do not wait for each other in between.

A program's threads share no order of writes and reads of the chip's memory, and Triton adds none: its interpreter,
which has one thread, cannot show that. So it is read off the text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.cells import EXAMPLES
from tests.modules import generate

STEMS = ("mamba", "gla", "retnet", "kda", "gateddeltanet", "kalman", "linoss", "mlstm", "mamba2block", "omeganet")
BARRIER = "tl.debug_barrier()"


def kernels(text: str) -> Iterator[ast.FunctionDef]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            yield node


def pointers(kernel: ast.FunctionDef, call: str, functions: dict[str, ast.FunctionDef]) -> set[str]:
    """The parameters that a kernel's loads, or its stores, are of, also those in functions that it calls. Launches that
    repair read what others wrote, and have no segments of their own."""
    found: set[str] = set()
    parameters = {a.arg for a in kernel.args.args}
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
        for place in places(node, call, functions) if isinstance(node, ast.Call) else ():
            names, seen = [n for n in ast.walk(place) if isinstance(n, ast.Name)], set[str]()
            while names:
                name = names.pop().id
                if name in parameters:
                    found.add(name)
                elif name in assigned and name not in seen and call not in ast.unparse(assigned[name]):
                    seen.add(name)
                    names += [n for n in ast.walk(assigned[name]) if isinstance(n, ast.Name)]
        stack.extend(ast.iter_child_nodes(node))
    return found


def places(node: ast.Call, call: str, functions: dict[str, ast.FunctionDef]) -> list[ast.expr]:
    """What a call reads, or writes, memory at."""
    name = ast.unparse(node.func)
    if name == call:
        return node.args[:1]
    if name not in functions:
        return []
    own = [a.arg for a in functions[name].args.args]
    used = pointers(functions[name], call, functions)
    return [value for parameter, value in zip(own, node.args, strict=False) if parameter in used]


def hazards(text: str) -> set[str]:
    """The kernels of a module that read what they wrote without a barrier."""
    functions = {k.name: k for k in kernels(text)}
    return {
        name
        for name, k in functions.items()
        if any(p.endswith("_ptr") for p in pointers(k, "tl.load", functions) & pointers(k, "tl.store", functions))
        and BARRIER not in ast.unparse(k)
    }


@pytest.mark.parametrize("stem", STEMS)
def test_no_kernel_reads_what_it_wrote(stem: str) -> None:
    text = generate((EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8"))
    assert any(pointers(k, "tl.load", {}) for k in kernels(text))
    assert not hazards(text)


def test_a_barrier_is_missed() -> None:
    text = generate((EXAMPLES / "mamba.rnn").read_text(encoding="utf-8"))
    assert hazards(text.replace(BARRIER, "pass")) == {"_Mamba_S_backward"}


def test_what_functions_read_is_seen() -> None:
    """A convolution's earlier tokens are loaded in a function, and so is what the kernel of a solution reads."""
    text = generate((EXAMPLES / "gateddeltanet.rnn").read_text(encoding="utf-8"))
    within = re.sub(r"tl\.store\(\s*q_ptr", "tl.store(q_2_in_ptr", text)
    assert hazards(within) == {"_GatedDeltaNet_q_forward"}
    assert "_GatedDeltaNet_S_solve" in hazards(text.replace("_tl_solve(system_ptr + ", "_tl_solve(inverse_ptr + "))

"""Generated kernels without what they do not use: the frame names all that a kernel may need."""

from __future__ import annotations

import ast


def pruned(text: str) -> str:
    """One function without the parameters, and without the assignments, of names that nothing reads."""
    lines = text.split("\n")
    while True:
        function = ast.parse("\n".join(lines)).body[0]
        assert isinstance(function, ast.FunctionDef)
        read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        unused: list[ast.stmt | ast.arg] = [a for a in function.args.args if a.arg not in read]
        unused += [
            n for n in ast.walk(function) if isinstance(n, ast.Assign | ast.AugAssign) and not _targets(n) & read
        ]
        if not unused:
            return "\n".join(lines)
        gone = {i for n in unused for i in range(n.lineno - 1, n.end_lineno or n.lineno)}
        lines = [line for i, line in enumerate(lines) if i not in gone]


def _targets(node: ast.Assign | ast.AugAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}

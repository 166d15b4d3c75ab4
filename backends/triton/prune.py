"""Generated kernels without what they do not use: the frame names all that a kernel may need."""

from __future__ import annotations

import ast


def pruned(text: str) -> str:
    """One function without the parameters, and without the assignments, of names that nothing reads."""
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    nodes = list(ast.walk(function))
    targets = {n: _targets(n) for n in nodes if isinstance(n, ast.Assign | ast.AugAssign)}
    inside = {name: n for n in targets for name in ast.walk(n) if isinstance(name, ast.Name)}
    loads = [(n.id, inside.get(n)) for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    unused: set[ast.stmt | ast.arg] = set()
    while True:
        # What only unused assignments read is unused as well.
        read = {name for name, reader in loads if reader not in unused}
        found: set[ast.stmt | ast.arg] = {n for n, own in targets.items() if not own & read}
        found |= {a for a in function.args.args if a.arg not in read}
        if found <= unused:
            break
        unused |= found
    gone = {i for n in unused for i in range(n.lineno - 1, n.end_lineno or n.lineno)}
    return "\n".join(line for i, line in enumerate(text.split("\n")) if i not in gone)


def _targets(node: ast.Assign | ast.AugAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}

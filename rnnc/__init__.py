"""rnnc: a compiler from recurrences, as written on a whiteboard, to PyTorch modules with fused kernels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module

__version__ = "0.1.0"

# In a checkout, `grammar`, `templates` and `backends` stand beside this package; in a wheel, inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "grammar" / "rnn.lark").is_file():
    __path__.append(str(_root))


def compile(program: str | os.PathLike[str], *, cell: str | None = None, strict: bool = False) -> type[Module]:
    """The class of a cell, from the path of a `.rnn` file or from a program's text.

    `cell` chooses one where a file holds several. `strict` makes an undecided claim an error. Raises
    `rnnc.diagnostics.ProgramError`, whose message shows what is wrong and where. The class lives in this process: for
    one that another process can unpickle, write the module with `rnnc compile` and import it.
    """
    from rnnc.loading import load

    return load(program, cell=cell, strict=strict)

"""rnnc: a compiler from recurrences, as written on a whiteboard, to PyTorch modules with fused kernels."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

# In a checkout, `grammar`, `templates` and `backends` stand beside this package; in a wheel, inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "grammar" / "rnn.lark").is_file():
    __path__.append(str(_root))

"""Each example written by hand as a plain PyTorch loop, from its paper, with nothing of the compiler.

An oracle takes the cell's params by name, its inputs `[B, T, ...]` by name and a state by field name (None: the initial
one), and returns its outputs and the final state. Histories are newest first.
"""

from tests.oracles.attention import ATTENTION
from tests.oracles.case import Case, Oracle, Result, Tensors
from tests.oracles.language import LANGUAGE
from tests.oracles.learners import LEARNERS
from tests.oracles.literature import LITERATURE
from tests.oracles.sequential import SEQUENTIAL

CASES: dict[str, Case] = {**LANGUAGE, **LITERATURE, **ATTENTION, **SEQUENTIAL, **LEARNERS}

__all__ = ["CASES", "Case", "Oracle", "Result", "Tensors"]

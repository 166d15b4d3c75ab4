"""The reference backend: an interpreter that runs the equations as written. It is the meaning of the language."""

from .interpreter import Interpreter

__all__ = ["Interpreter"]

"""Shared set-up of the tests."""

import os

import torch

torch.set_num_threads(1)
# Loops in C are compiled where a test asks for them (tests/test_compiled.py): hundreds of programs would be elsewhere.
os.environ.setdefault("RNNC_LOOPS", "python")

"""Shared set-up of the tests."""

import torch

torch.set_num_threads(1)

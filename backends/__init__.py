"""Backends of rnnc, one folder each."""

"""Kernels in Triton for whatever machine Triton compiles for: plain functions over tensors, and the launches they need.

A leaf, not a backend: it imports triton and torch and nothing of this package, so every backend whose compiler is
Triton may share it. What a step or a cache is, is the backend's knowledge.

No launch depends on a value that changes from step to step: what varies (rows, strides, where a packed buffer's
sections begin) is declared `do_not_specialize`, or serving would stop to compile at the first odd number.
"""

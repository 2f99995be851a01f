"""Layers that models are made of. Each holds the op callables it needs; nothing dispatches per call."""

"""Layers that models are made of. Each holds the op callables it needs, so nothing dispatches per call.

`LayerFactory` makes them for one device; `WeightLayer` is how they get their weights.
"""

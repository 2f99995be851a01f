"""Readers of checkpoints that are already quantized: one file a format, each to a `WeightScheme` and neutral tensors.

`quantization_config` of a model's config.json is read once, by `recognize`, which needs no torch and gives a `Layout`;
`find` gives the reader of a layout. A reader is told a module's stored tensors and returns the form of
`core/ops/quantized.py`, whatever it was packed like. Layers that a checkpoint left alone have a plain `weight` and
never get here, so mixed checkpoints need no list of exceptions; which layer is stored how is read off its own tensors,
or off the config's rules where those do not tell.

Legend: K input features, N output features, G groups of a row.
"""

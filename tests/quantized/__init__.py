"""Checkpoints made by each format's own tool, from one seeded tiny Llama, and what the tool says they stand for.

`make verify-quant` installs the tools, makes every checkpoint anew and compares (`verify.py`). The ones in
`tests/models/data/quantized` were made by the same `make.py` and serve tests that have no tools. What formats cost a
real model is `perplexity.py`'s.
"""

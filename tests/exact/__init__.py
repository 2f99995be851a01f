"""Speculation with a real model and everything else on, against plain decoding: `python -m tests.exact`."""

"""Numerics of the Triton kernels on any host: `TRITON_INTERPRET=1 pytest tests/interpreted`."""

"""Every Triton kernel through the vendors' compilers, ahead of time, on a host without their devices.

It runs in an environment of its own (`requirements.txt`): `python -m tests.compiled.report`. What compiles is what the
backends' own functions launch, with the tiles that they choose, specialized as Triton would at a launch.
"""

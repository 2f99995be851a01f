"""Kernels in C++ for the host's own vector instructions, compiled at first use: attention, small ops, linear layers.

`build` compiles and caches, `library` gives the functions to Python, `attention`, `elementwise` and `linear` are the
ops over them. `crew.hpp` is the threads that they share, which wait awake from one kernel to the next. Without a compiler the backend computes by torch alone; what it computes is the same.
"""

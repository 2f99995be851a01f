"""Kernels in C++ for the host's own vector instructions, compiled at first use: attention, small ops, linear layers.

`build` compiles and caches, `library` gives the functions to Python, `attention`, `elementwise`, `linear` and
`blocks` (GGUF's) are the ops over them, and `tape` plays whole decode steps of them again. In C++, `kernels.hpp` lists
what there is, `team.hpp` says how threads share it, `panels.hpp` what linear layers share, and `choice.cpp` chooses
tokens behind a step. Without a compiler the backend computes by torch alone; what it computes is the same.
"""

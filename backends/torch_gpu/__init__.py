"""A GPU as torch sees one: streams, events, captured graphs, and `backends/triton`'s kernels as ops of the contract.

A leaf, not a backend: CUDA, ROCm and XPU are shells around it, which differ in how devices are found, in what they
declare, and in the `Runtime` that torch reaches them by. It names no vendor's device, and no backend imports another.
"""

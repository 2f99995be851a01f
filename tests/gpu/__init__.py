"""What needs an NVIDIA GPU: kernels, captured graphs, tokens on the hardware. Collected nowhere else."""

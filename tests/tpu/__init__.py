"""Programs and kernel of the TPU backend through XLA on the host and libtpu's compiler: `make verify-tpu`."""

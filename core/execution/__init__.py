"""The default `Executor`: a batch of integers becomes tensors, a program runs, tokens are chosen and stay there.

`loading` makes one and `runner` is one. `table` holds what the device knows of each sequence, `inputs` gathers a step's
tensors from it, `programs` runs them, `choosing` chooses tokens behind them as `sampling` says, `pending` brings those
back without waiting. A backend whose compiler owns the whole model implements `core.backend.Executor` itself and needs
none of this.
"""

"""One model on several devices: tensor parallelism, a process a device (Shoeybi et al. 2019).

`shard` says which part of a model a rank holds; `communicator` is how ranks add and gather; `meeting` is how they find
each other. `leading` is the engine process, rank 0, which starts the others (`processes`) and hands each of them every
`Batch` (`executor`); `following` is what the others do. What a layer does with its part is `core/layers`.
"""

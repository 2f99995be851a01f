"""One model on several devices, a process each: tensor parallelism (Shoeybi et al. 2019) and pipeline stages.

`shard` says which part of its layers a rank holds, `stages` which layers; `communicator` is how ranks add and gather,
`groups` who does so with whom; `meeting` is how they find each other. `leading` is the engine process, rank 0, which
starts the others (`processes`) and hands each of them every `Batch`; `following` is what the others do. What a layer
does with its part is `core/layers`, what passes between stages `core/execution/relay`.
"""

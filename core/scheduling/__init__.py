"""Continuous batching over a paged KV cache: who waits, who runs, who holds which blocks. Integers only, no torch.

`scheduler` is the public face: add, cancel, plan one step, commit one. Read on in this order: `planner` (the policy of
one step), `answering` (what a committed one says to those who asked), `ledger` (sequences against blocks), `blocks`
(the paged cache and its prefix index). A step leaves this room as a `core.batch.Batch`; how it is computed is
`core.execution`.
"""

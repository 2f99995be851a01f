"""`mainspring bench`: how fast a model or a server is, by definitions that are the same for every peer.

`latency` and `throughput` run a model in this process's own engine; `serve` loads any server that speaks OpenAI's or
TGI's protocol and knows nothing of ours. What the numbers mean is docs/benchmarking.md; what the host costs on its own
is in the repository's benchmarks/.
"""

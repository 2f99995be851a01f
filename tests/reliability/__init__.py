"""What holds when things go wrong, with its times: docs/promises.md says it, these tests measure it."""

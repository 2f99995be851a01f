"""Token ids to text and back, for both protocols: byte-safe, incremental, linear. `generation` is all of it."""

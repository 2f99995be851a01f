"""Guided decoding in the engine: which tokens a grammar allows next, and where each sequence stands in its grammar.

`protocol` is what an engine for grammars must do, `llguidance` and `xgrammar` adapt two of them, `store` keeps what was
read, `guides` holds the running sequences' states. Requests' grammars are checked before they come here, in processes
of their own (`server/grammar`): here a grammar that fails fails its own sequence.
"""

"""Grammars of requests before they reach the engine: `limits` and `requests` say what may be asked for, `guidance` has
it checked by a process that may be killed (`core/grammar/checking.py`) and remembers what passed.
"""

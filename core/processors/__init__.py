"""Logits processors: code of plugins that changes scores before a token is chosen, for the requests that name it.

`contract` is what an author implements, `loading` finds the classes, `forms` checks what requests say against what they
declare, `stage` applies them to a step's rows, and `watermark` is the first of them. How to write one:
docs/logits-processors.md. What of this crosses the process border is in `core/request.py`.
"""

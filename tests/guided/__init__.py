"""Whether guided answers are right, whole: 200 schemas and 100 regular expressions, and every keyword by itself.

`schemas.py` and `expressions.py` are what is asked for, `formats.py` what formats mean to another's eyes, `keywords.py`
tries keywords on the engines alone. `python -m tests.guided` has SmolLM2 answer all of them and prints a report
(minutes); `python -m tests.guided.keywords` prints docs/guided-keywords.md (seconds).
"""

"""Reasoning: what a model thinks aloud before it answers, told from the answer.

Pure text machines, as `server/tools` has them: `think.py` reads thoughts between two marks, `formats.py` is the table
of them and the choice for a model. Harmony's channels carry calls too, so they are read by `server/tools/harmony.py`.
"""

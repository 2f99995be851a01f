"""The conformance kit: holds a backend against the references in `core/ops`, and says of each op how it stands.

    mainspring conformance BACKEND [--only CHECK] [--time] [--json] [--save FILE]
    pytest --conformance BACKEND

A *check* has a subject, known from what the backend declares, and runs cases of it on an open device; what came of them
is a *finding*; all findings are a *report*. Checks by file: `identity.py` (what the backend says of itself, small
calls), `elementwise.py`, `attention.py` (over `bench.py`: a device's cache beside the reference's, filled with NaN
first), `large.py` (offsets past 2^31), `linear.py`, `sampling.py`, `model.py` (a tiny Llama served by the core's own
executor and scheduler, against transformers), `collectives.py` (two processes), `own_executor.py` (backends without
ops). `checks.py` runs them, `trial.py` compares, `speed.py` times, `report.py` prints, `matrix.py` puts the reports of
all backends side by side.

Nothing here takes eager execution or free shapes for granted: where shapes are bucketed only buckets are tried, and
each step ends with `synchronize`, so that devices that gather ops run it as one program.
"""

"""The conformance kit: checks a backend against the references in `core/ops`, one report for all of it.

    python -m mainspring.core.conformance BACKEND [--json]

`cases.py` says which ragged batches are tried and `bench.py` fills a device's cache and the reference's with them;
`attention.py`, `elementwise.py`, `linear.py` and `sampling.py` are the checks, `checks.py` runs them all, `report.py`
shows what came of it. A device's cache is filled through the device's own ops, so that its layout stays its own, and
with NaN first: what a block held before must not matter.
"""

"""Vendors' stand-in devices: names, ops and refusals of machines that are not there, a process each."""

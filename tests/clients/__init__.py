"""Clients as their users have them, each in an environment of its own: `python -m tests.clients`."""

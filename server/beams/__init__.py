"""Beam search: the likeliest whole answers, found by extending several beginnings side by side.

`search.py` is the policy, without an engine; `form.py` what requests may say of it; `probing.py` the search over the
engine: each beginning is asked for its likeliest next tokens as a request of one token, and what it has said so far is
in the prefix cache. The engine knows no beams.
"""

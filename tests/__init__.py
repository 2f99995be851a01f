"""Tests by what they need, a folder each; CONTRIBUTING.md says which is which."""

"""Backends: one folder a machine. Found by entry point only; nothing here imports another backend."""
